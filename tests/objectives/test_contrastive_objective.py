"""InfoNCE in the batch, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import Outputs
from selfdistill.objectives import Contrastive
from selfdistill.views import Views


def slow(q: Tensor, k: Tensor, pairs: list[tuple[int, int]], temperature: float) -> Tensor:
    images = q.shape[1]
    total = torch.zeros((), dtype=q.dtype)
    for s, t in pairs:
        for i in range(images):
            scores = []
            for j in range(images):
                query, key = q[s, i], k[t, j].detach()
                scores.append(torch.exp((query @ key) / query.norm() / key.norm() / temperature))
            total = total - torch.log(scores[i] / sum(scores))
    return total / images / len(pairs)


def test_value_and_gradient(multicrop: Any, clocked: Any, same: Any, pairs: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    views, objective = multicrop(), Contrastive(0.3)

    def ours(q: Tensor, k: Tensor) -> Tensor:
        # which pairs the method itself compares does not matter
        return objective.terms(clocked, views, Outputs(q, q, ((0, 0),)), Outputs(k, k))["contrastive"]

    same(ours, lambda q, k: slow(q, k, pairs, 0.3), [torch.randn(3, 7, 5), torch.randn(2, 7, 5)])


def test_a_single_view_has_no_pair(clocked: Any) -> None:
    z = torch.randn(1, 7, 5)
    views = Views([torch.randn(7, 1, 8, 8)], (frozenset({"teacher", "student"}),))
    with pytest.raises(ValueError, match=r"objective\.contrastive: no two crops.*views=byol"):
        Contrastive().terms(clocked, views, Outputs(z, z), Outputs(z, z))


@pytest.mark.parametrize("student", [torch.randn(7, 5), torch.randn(3, 6, 5), [torch.randn(3, 7, 5)]])
def test_other_projections_are_refused(student: Any, multicrop: Any, clocked: Any) -> None:
    z = torch.randn(2, 7, 5)
    with pytest.raises(ValueError, match=r"objective\.contrastive: projections .*given, allowed are \[3 crops, 7 im"):
        Contrastive().terms(clocked, multicrop(), Outputs(student, z), Outputs(z, z))
    with pytest.raises(ValueError, match=r"objective\.contrastive: projections NoneType given"):
        Contrastive().terms(clocked, multicrop(), Outputs(torch.randn(3, 7, 5), z), None)
