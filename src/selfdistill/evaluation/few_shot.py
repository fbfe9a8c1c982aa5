"""Nearest-class-mean classification from a few labelled images a class."""

from __future__ import annotations

import torch
from torch import Tensor

from selfdistill.evaluation.features import CHUNK, labelled_rows, unit_rows


class FewShotResult(float):
    """Mean accuracy over the draws, in [0, 1], used as a plain float; its spread stands beside it.

    Attributes:
        mean: the value itself.
        std: standard deviation over draws (n − 1); 0 with a single draw.
        ci95: half width of the 95 % interval of the mean over draws, 1.96 · std / √draws. It covers the
            choice of the labelled images only, neither training nor the test split.
    """

    std: float
    ci95: float

    def __new__(cls, mean: float, std: float, ci95: float) -> FewShotResult:
        self = super().__new__(cls, mean)
        self.std, self.ci95 = std, ci95
        return self

    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override]  # float's has one
        return self.mean, self.std, self.ci95

    def __repr__(self) -> str:
        return f"FewShotResult(mean={self.mean:.4f}, std={self.std:.4f}, ci95={self.ci95:.4f})"

    @property
    def mean(self) -> float:
        return float(self)


@torch.no_grad()
def few_shot_accuracy(
    features_train: Tensor,
    labels_train: Tensor,
    features_test: Tensor,
    labels_test: Tensor,
    *,
    shots: int,
    draws: int = 20,
    seed: int = 0,
    center: bool = True,
) -> FewShotResult:
    """Accuracy on all test images of the nearest class mean over ``shots`` labelled images a class.

    Features are centred by the mean of all training features (no label is used), brought to length 1, and
    compared by Euclidean distance with the mean of each class: SimpleShot's CL2N, arXiv 1911.04623; its L2N
    with ``center=False``. Raw pixels or another network's features pass through the same treatment, and
    since draws depend on ``seed`` and ``labels_train`` alone, on the same labelled images.

    Args:
        features_train: ``[N, D]``, from which labelled images are drawn.
        labels_train: ``[N]`` class indices ≥ 0.
        features_test: ``[M, D]``.
        labels_test: ``[M]``; a class that the training features lack counts as wrong.
        shots: labelled images a class, drawn without replacement.
        draws: repeats; the first draws are the same whatever their number.
        seed: of the draws' own generator; the global random state is not touched.
        center: subtract the mean of the training features first.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not fit, ``shots`` or ``draws`` < 1, or a class with too few images.
    """
    train, labels_train = labelled_rows("train features", features_train, labels_train)
    test, labels_test = labelled_rows("test features", features_test, labels_test, like=train)
    if shots < 1 or draws < 1:
        raise ValueError(f"shots={shots}, draws={draws}: give at least one of each")
    classes, index, counts = labels_train.unique(return_inverse=True, return_counts=True)
    if counts.min() < shots:
        raise ValueError(
            f"shots={shots}: class {int(classes[counts.argmin()])} has {int(counts.min())} training images: "
            "give fewer shots or more images"
        )
    if center:
        mean = train.mean(0)
        train, test = train - mean, test - mean
    train, test = unit_rows(train), unit_rows(test)

    index, first = index.cpu(), (counts.cumsum(0) - counts).cpu()
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(draws):
        shuffled = torch.randperm(len(index), generator=generator)
        by_class = shuffled[index[shuffled].argsort(stable=True)]
        drawn = by_class[first[:, None] + torch.arange(shots)].to(train.device)
        predicted = classes[_nearest_mean(train[drawn].mean(1), test)]
        scores.append((predicted == labels_test).double().mean())
    accuracy = torch.stack(scores)
    std = accuracy.std().item() if draws > 1 else 0.0
    return FewShotResult(accuracy.mean().item(), std, 1.96 * std / draws**0.5)


def _nearest_mean(means: Tensor, queries: Tensor) -> Tensor:
    """Row of ``means`` ``[C, D]`` nearest to each query ``[M, D]``."""
    # |q − m|² = |q|² − 2 (q·m − |m|²/2)
    offset = means.square().sum(1) / 2
    with torch.autocast(means.device.type, enabled=False):
        parts = queries.split(max(1, CHUNK // len(means)))
        return torch.cat([(part @ means.T - offset).argmax(1) for part in parts])
