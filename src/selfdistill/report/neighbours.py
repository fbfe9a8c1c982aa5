"""The training images that lie nearest to some test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.evaluation.features import feature_rows, unit_rows


@dataclass(frozen=True)
class Neighbours:
    """Rows to show.

    Attributes:
        queries: ``[R]`` rows of the test features.
        found: ``[R, K]`` rows of the bank, the nearest first.
        similarity: ``[R, K]`` cosines.
        typical: the first so many queries were picked without a look at their neighbours.
        mistaken: share of all test images whose nearest is of another class.
    """

    queries: Tensor
    found: Tensor
    similarity: Tensor
    typical: int
    mistaken: float


def nearest(
    bank: Tensor, bank_labels: Tensor, tests: Tensor, labels: Tensor, *, typical: int, mistakes: int, k: int
) -> Neighbours:
    """Neighbours by cosine of ``typical`` test images of different classes, and of the surest ``mistakes``.

    A mistake is a test image whose nearest neighbour is of another class; the surest ones lie closest to it.

    Args:
        bank: ``[N, D]`` features of training images.
        bank_labels: ``[N]``.
        tests: ``[M, D]`` features of test images.
        labels: ``[M]``.
        typical: images that are picked evenly over the classes.
        mistakes: images at most that are picked for their nearest neighbour.
        k: neighbours an image; the whole bank where it has fewer.
    """
    similarity = unit_rows(feature_rows("tests", tests)) @ unit_rows(feature_rows("bank", bank)).T
    values, found = similarity.topk(min(k, len(bank)))
    classes = labels.unique()
    picked = classes[torch.linspace(0, len(classes) - 1, min(typical, len(classes))).round().long()]
    even = torch.stack([(labels == one).nonzero()[0, 0] for one in picked])
    wrong = bank_labels[found[:, 0]] != labels
    surest = values[:, 0].masked_fill(~wrong, -2.0).argsort(descending=True, stable=True)[: int(wrong.sum())]
    queries = torch.cat([even, surest[:mistakes]])
    return Neighbours(queries, found[queries], values[queries], len(even), float(wrong.double().mean()))
