"""The protocols by name, each a set of settings and what it measures of a :class:`Subject`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from selfdistill.evaluation.features import evaluating, extract_features
from selfdistill.evaluation.few_shot import few_shot_accuracy
from selfdistill.evaluation.finetune import finetune
from selfdistill.evaluation.gather import extract_over_ranks
from selfdistill.evaluation.geometry import alignment, effective_rank, feature_std, mean_cosine, rankme, uniformity
from selfdistill.evaluation.knn import knn_sweep
from selfdistill.evaluation.label_fraction import label_fraction_accuracy
from selfdistill.evaluation.linear import linear_probe
from selfdistill.evaluation.linear_sgd import linear_probe_sgd
from selfdistill.methods import SelfDistillModule

Split = Literal["train", "validation", "test"]
Rows = tuple[Tensor, Tensor]
"""Features ``[N, D]`` and labels ``[N]``."""


class Labelled(Protocol):
    """A data module that gives images without augmentation."""

    def evaluation_loader(self, split: Split) -> DataLoader[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Figure:
    """One number of a protocol.

    Attributes:
        protocol: that measured it.
        setting: what distinguishes it within the protocol.
        value: an accuracy in [0, 1], or a measure of geometry.
        ci95: half width of the 95 % interval of the mean over draws; None where nothing is drawn.
    """

    protocol: str
    setting: str
    value: float
    ci95: float | None = None


class Subject:
    """A network and the data that it is evaluated on; every image is embedded once, by all processes together.

    Train is the bank and the labelled pool, validation serves choices, and test the figures.
    """

    def __init__(self, module: SelfDistillModule[Any, Any], data: Labelled) -> None:
        self.module = module
        self.data = data
        with evaluating(module):
            self.train, self.validation, self.test = (
                self._features(split) for split in ("train", "validation", "test")
            )

    @cached_property
    def moved_test(self) -> Tensor:
        """[N, D]: features of the test images, each :func:`moved`; this process makes them all, when asked for."""
        device = self.module.device
        with evaluating(self.module):
            features, _ = extract_features(
                lambda images: self.module.embed(moved(images)), self.data.evaluation_loader("test"), device
            )
        return features.to(device)

    def _features(self, split: Split) -> Rows:
        device = self.module.device
        features, labels = extract_over_ranks(self.module.embed, self.data.evaluation_loader(split), device)
        return features.to(device), labels.to(device)

    @property
    def absent(self) -> list[int]:
        """Classes of the test split that no training image has: their images count as wrong."""
        return sorted(set(self.test[1].tolist()) - set(self.train[1].tolist()))


class Evaluation(Protocol):
    """A protocol: settings, and figures of a subject."""

    def __call__(self, subject: Subject) -> list[Figure]: ...


@dataclass(frozen=True)
class KNN:
    """:func:`knn_sweep` on the test split; ``chosen on validation`` is the setting that is best on that split.

    A ``k`` beyond the bank is the whole bank.
    """

    ks: Sequence[int] = (1, 5, 10, 20, 50, 100, 200)
    temperatures: Sequence[float] = (0.02, 0.07, 0.2)

    def __call__(self, subject: Subject) -> list[Figure]:
        if not self.ks:
            raise ValueError("protocol.knn.ks: none given; give at least one number of neighbours")
        ks = sorted({min(k, len(subject.train[0])) for k in self.ks})
        swept = knn_sweep(*subject.train, *subject.test, ks=ks, temperatures=self.temperatures)
        held_out = knn_sweep(*subject.train, *subject.validation, ks=ks, temperatures=self.temperatures)
        best = max(held_out, key=lambda setting: held_out[setting])
        figures = [Figure("knn", f"k={k} temperature={t:g}", value) for (k, t), value in swept.items()]
        return [*figures, Figure("knn", f"chosen on validation: k={best[0]} temperature={best[1]:g}", swept[best])]


@dataclass(frozen=True)
class Linear:
    """:func:`linear_probe` (``lbfgs``) or :func:`linear_probe_sgd` (``sgd``)."""

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    l2: float | Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    max_iter: int = 200
    learning_rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    epochs: int = 100
    batch_size: int = 256

    def __call__(self, subject: Subject) -> list[Figure]:
        if self.solver == "lbfgs":
            value = linear_probe(*subject.train, *subject.test, l2=self.l2, max_iter=self.max_iter)
        elif self.solver == "sgd":
            value = linear_probe_sgd(
                *subject.train,
                *subject.test,
                learning_rates=self.learning_rates,
                epochs=self.epochs,
                batch_size=self.batch_size,
            )
        else:
            raise ValueError(f"protocol.linear.solver: {self.solver!r} given, allowed is lbfgs or sgd")
        return [Figure("linear", self.solver, value)]


@dataclass(frozen=True)
class FewShot:
    """:func:`few_shot_accuracy` by shots, and :func:`label_fraction_accuracy` by share of the labels.

    Shots that the smallest class has not are left out.
    """

    shots: Sequence[int] = (1, 2, 5, 10)
    draws: int = 20
    fractions: Sequence[float] = (0.01, 0.1)
    fraction_draws: int = 5

    def __call__(self, subject: Subject) -> list[Figure]:
        fewest = int(subject.train[1].unique(return_counts=True)[1].min())
        figures = []
        for shots in (n for n in self.shots if n <= fewest):
            result = few_shot_accuracy(*subject.train, *subject.test, shots=shots, draws=self.draws)
            figures.append(Figure("few_shot", f"{shots} shot{'s' * (shots > 1)}", result.mean, result.ci95))
        for fraction in self.fractions:
            result = label_fraction_accuracy(
                *subject.train, *subject.test, fraction=fraction, draws=self.fraction_draws
            )
            figures.append(Figure("few_shot", f"{fraction:.4g} of the labels", result.mean, result.ci95))
        return figures


@dataclass(frozen=True)
class Finetune:
    """:func:`finetune`, for each share of the labels."""

    fractions: Sequence[float] = (1.0,)
    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    augment: bool = False
    seed: int = 0

    def __call__(self, subject: Subject) -> list[Figure]:
        figures = []
        for fraction in self.fractions:
            accuracy = finetune(
                subject.module,
                subject.data.evaluation_loader("train"),
                subject.data.evaluation_loader("test"),
                fraction=fraction,
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                weight_decay=self.weight_decay,
                label_smoothing=self.label_smoothing,
                augment=self.augment,
                seed=self.seed,
            )
            figures.append(
                Figure("finetune", "all labels" if fraction == 1 else f"{fraction:.4g} of the labels", accuracy)
            )
        return figures


@dataclass(frozen=True)
class Geometry:
    """The shape of the test features: no label is used.

    ``alignment`` pairs an image with itself moved by an eighth of its sides (:func:`moved`): the views of training
    differ from method to method, this one is the same for all.

    Args:
        most: features that are looked at, spread evenly over the test split.
    """

    most: int = 10_000

    def __call__(self, subject: Subject) -> list[Figure]:
        every = max(1, -(-len(subject.test[0]) // self.most))
        x = subject.test[0][::every]
        other = subject.moved_test[::every]
        measures: dict[str, Callable[[Tensor], Tensor]] = {
            "effective rank": effective_rank,
            "RankMe": rankme,
            "std × √D": feature_std,
            "alignment": partial(alignment, other),
            "uniformity": uniformity,
            "mean cosine": mean_cosine,
        }
        return [Figure("geometry", name, float(measure(x))) for name, measure in measures.items()]


def moved(images: Tensor) -> Tensor:
    """Images ``[B, C, H, W]`` moved down and right by an eighth of their sides; what enters is their reflection."""
    height, width = images.shape[-2:]
    down, right = height // 8, width // 8
    return F.pad(images, (right, 0, down, 0), mode="reflect")[..., :height, :width]


def table(figures: Sequence[Figure]) -> str:
    """Plain text, a line a figure."""
    wide = max(len(f.setting) for f in figures)
    lines = [f"{'protocol':<10}{'setting':<{wide + 2}}{'value':>8}"]
    for f in figures:
        spread = "" if f.ci95 is None else f" ± {f.ci95:.3f}"
        lines.append(f"{f.protocol:<10}{f.setting:<{wide + 2}}{f.value:>8.3f}{spread}")
    return "\n".join(lines)
