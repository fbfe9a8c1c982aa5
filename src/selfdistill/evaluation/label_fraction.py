"""Accuracy from a small share of the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.evaluation.features import labelled_rows
from selfdistill.evaluation.few_shot import FewShotResult
from selfdistill.evaluation.linear import linear_probe


def label_fraction_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    fraction: float,
    draws: int = 5,
    seed: int = 0,
    l2: float | Sequence[float] = (1e-3, 1e-2, 1e-1),
    max_iter: int = 100,
) -> FewShotResult:
    """Accuracy on all test images of logistic regression on ``fraction`` of the labelled features.

    The low-shot protocol of MSN (arXiv 2204.07141, section 4.1) for 1 % and 10 % of the labels, on cached features and
    repeated over draws, since one draw of 1 % says little. Of each class the rounded share of its images is
    drawn, one at least. Draws depend on ``seed`` and ``train_y`` alone.

    Args:
        train_x: ``[N, D]``, from which labelled images are drawn.
        train_y: ``[N]`` class indices ≥ 0.
        test_x: ``[M, D]``.
        test_y: ``[M]``.
        fraction: of the labels, above 0 and up to 1.
        draws: repeats.
        seed: of the draws' own generator; the global random state is not touched.
        l2: as :func:`linear_probe`, chosen inside each draw.
        max_iter: as :func:`linear_probe`.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not fit, or a setting out of its range.
    """
    if not 0 < fraction <= 1 or draws < 1:
        raise ValueError(f"fraction={fraction}, draws={draws}: give a fraction above 0 and up to 1, and 1 draw or more")
    x, y = labelled_rows("train features", train_x, train_y)
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(draws):
        rows = draw_share(y.cpu(), fraction, generator).to(x.device)
        scores.append(linear_probe(x[rows], y[rows], test_x, test_y, l2=l2, max_iter=max_iter))
    accuracy = torch.tensor(scores, dtype=torch.float64)
    std = accuracy.std().item() if draws > 1 else 0.0
    return FewShotResult(accuracy.mean().item(), std, 1.96 * std / draws**0.5)


def draw_share(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Indices of a random ``fraction`` of each class of ``labels`` ``[N]``, rounded, one image at least."""
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = []
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return torch.cat(chosen)
