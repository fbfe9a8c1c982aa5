"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.evaluation.features import CHUNK, feature_rows, labelled_rows, unit_rows
from selfdistill.products import row_products


def knn_predict(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Label each query by a vote of its k most similar bank features.

    A neighbour at cosine similarity s votes for its class with weight exp(s / temperature) (Wu et al.,
    arXiv 1805.01978, eq. 7; the protocol of DINO, arXiv 2104.14294). Similarities are computed in chunks of
    queries, on the bank's device and in float32 or better.

    Args:
        bank: ``[N, D]`` features of labelled images.
        bank_labels: ``[N]`` class indices ≥ 0, of any range.
        queries: ``[Q, D]``.
        k: neighbours; the whole bank where it holds fewer.
        temperature: of the weights; smaller listens to the nearest more.

    Returns:
        ``[Q]`` labels from the bank, on its device. Ties go to the lower label.

    Raises:
        ValueError: shapes that do not fit, ``k`` < 1, or ``temperature`` ≤ 0.
    """
    bank, bank_labels = labelled_rows("bank", bank, bank_labels)
    queries = feature_rows("queries", queries, like=bank)
    _check([k], [temperature])
    similarity, index = _nearest(bank, queries, k)
    classes, neighbours = bank_labels.unique(return_inverse=True)
    return classes[_vote(similarity, neighbours[index], len(classes), temperature)]


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of queries that :func:`knn_predict` labels correctly, in [0, 1].

    Args:
        bank: ``[N, D]`` features of labelled images.
        bank_labels: ``[N]`` class indices ≥ 0.
        queries: ``[Q, D]``.
        query_labels: ``[Q]`` class indices ≥ 0; a class that the bank lacks counts as wrong.
        k: neighbours; the whole bank where it holds fewer.
        temperature: of the weights.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not fit, ``k`` < 1, or ``temperature`` ≤ 0.
    """
    swept = knn_sweep(bank, bank_labels, queries, query_labels, ks=(k,), temperatures=(temperature,))
    return swept[k, temperature]


def knn_sweep(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperatures: Sequence[float] = (0.07,),
) -> dict[tuple[int, float], float]:
    """:func:`knn_accuracy` for each (k, temperature), the neighbours searched once."""
    bank, bank_labels = labelled_rows("bank", bank, bank_labels)
    queries, query_labels = labelled_rows("queries", queries, query_labels, like=bank)
    _check(ks, temperatures)
    similarity, index = _nearest(bank, queries, max(ks))
    classes, neighbours = bank_labels.unique(return_inverse=True)
    neighbours = neighbours[index]
    accuracy = {}
    for k in ks:
        for temperature in temperatures:
            voted = _vote(similarity[:, :k], neighbours[:, :k], len(classes), temperature)
            accuracy[k, temperature] = (classes[voted] == query_labels).double().mean().item()
    return accuracy


def _check(ks: Sequence[int], temperatures: Sequence[float]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"k={list(ks)}: give at least one neighbour")
    if not temperatures or not min(temperatures) > 0:
        raise ValueError(f"temperature={list(temperatures)}: give a number above 0")


@torch.no_grad()
def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity and bank row of the ``min(k, N)`` nearest, best first: ``[Q, k]`` each."""
    bank = unit_rows(bank)
    found = []
    # On a CPU few rows at a time: 128 was the fastest of 48 to 256 or next to it, at a bank of 50,000.
    rows = max(1, min(128 if bank.device.type == "cpu" else len(queries), CHUNK // len(bank)))
    with torch.autocast(bank.device.type, enabled=False):
        for part in queries.split(rows):
            # Named, so that it lives until the next one exists: memory that is given back and taken anew costs more.
            similarity = row_products(unit_rows(part), bank)
            found.append(similarity.topk(min(k, len(bank))))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


@torch.no_grad()
def _vote(similarity: Tensor, neighbours: Tensor, classes: int, temperature: float) -> Tensor:
    """Class ``[Q]`` with the largest sum of weights over neighbours ``[Q, k]``, best first."""
    # Relative to the nearest: exp(1 / temperature) alone leaves float32 below a temperature of .0113.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    rows = max(1, CHUNK // classes)
    return torch.cat(
        [
            w.new_zeros(len(w), classes).scatter_add_(1, n, w).argmax(1)
            for w, n in zip(weights.split(rows), neighbours.split(rows), strict=True)
        ]
    )
