"""The figures that end a run: k-NN and few-shot accuracy beside what costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from selfdistill.evaluation.features import evaluating, extract_features
from selfdistill.evaluation.few_shot import few_shot_accuracy
from selfdistill.evaluation.knn import knn_accuracy
from selfdistill.evaluation.linear import linear_probe
from selfdistill.methods import SelfDistillModule

Figures = dict[str, float]
"""Accuracies in [0, 1] by name: ``knn``, ``linear`` where asked for, ``one_shot``, ``five_shot``, …"""

_WORDS = {1: "one", 2: "two", 5: "five", 10: "ten"}


class Labelled(Protocol):
    """A data module that gives images without augmentation."""

    def evaluation_loader(self, split: Literal["train", "test"]) -> DataLoader[tuple[Tensor, Tensor]]: ...


def backbone_figures(
    module: SelfDistillModule[Any, Any],
    data: Labelled,
    *,
    k: int = 20,
    temperature: float = 0.07,
    shots: Sequence[int] = (1, 5),
    draws: int = 20,
    linear: bool = False,
) -> Figures:
    """Accuracy on the test split of ``module.embed``, the train split being bank and labelled pool."""
    with evaluating(module):
        train = extract_features(module.embed, data.evaluation_loader("train"), module.device)
        test = extract_features(module.embed, data.evaluation_loader("test"), module.device)
    return _figures(train, test, k, temperature, shots, draws, linear)


def pixel_figures(
    data: Labelled,
    *,
    k: int = 20,
    temperature: float = 0.07,
    shots: Sequence[int] = (1, 5),
    draws: int = 20,
    linear: bool = False,
) -> Figures:
    """The same figures for the pixels themselves, in the same treatment; images above 32 px are averaged to 32."""
    cpu = torch.device("cpu")
    train = extract_features(_pixels, data.evaluation_loader("train"), cpu)
    test = extract_features(_pixels, data.evaluation_loader("test"), cpu)
    return _figures(train, test, k, temperature, shots, draws, linear)


def _pixels(images: Tensor) -> Tensor:
    small = F.adaptive_avg_pool2d(images, 32) if max(images.shape[-2:]) > 32 else images
    return small.flatten(1)


def _figures(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    k: int,
    temperature: float,
    shots: Sequence[int],
    draws: int,
    linear: bool,
) -> Figures:
    figures = {"knn": knn_accuracy(*train, *test, k=k, temperature=temperature)}
    if linear:
        figures["linear"] = linear_probe(*train, *test)
    fewest = int(train[1].unique(return_counts=True)[1].min())
    for n in shots:
        if n > fewest:
            continue  # a class has fewer images than that
        result = few_shot_accuracy(*train, *test, shots=n, draws=draws)
        figures[f"{_WORDS.get(n, str(n))}_shot"] = float(result)
    return figures


def figures_table(figures: Mapping[str, Figures]) -> str:
    """A plain-text table, one row a representation, in percent-free accuracies."""
    names = list(next(iter(figures.values())))
    titles = {
        "knn": "k-NN",
        **{n: n.replace("_", "-").replace("one", "1").replace("five", "5") for n in names[1:]},
    }
    rows = {
        "trained": "trained backbone",
        "raw_pixels": "raw pixels",
        "initial": "backbone at initialisation",
    }
    width = max(len(rows.get(row, row)) for row in figures)
    lines = [" " * width + "".join(f"{titles[n]:>9}" for n in names)]
    for row, values in figures.items():
        lines.append(f"{rows.get(row, row):<{width}}" + "".join(f"{values[n]:>9.3f}" for n in names))
    return "\n".join(lines)
