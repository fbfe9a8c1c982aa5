"""Swapped prediction with a teacher, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.methods import BYOL, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.objectives import Clustering


def attached(**settings: Any) -> Clustering:
    torch.manual_seed(0)
    objective = Clustering(**settings)
    BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, objectives={"clustering": objective})
    return objective


def cosines(z: Tensor, prototypes: Tensor) -> Tensor:
    rows = [[(x @ c) / x.norm() / c.norm() for c in prototypes] for x in z]
    return torch.stack([torch.stack(row) for row in rows])


def balanced(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    codes = torch.exp(scores.detach() / epsilon)
    for _ in range(iterations):
        for k in range(codes.shape[1]):
            codes[:, k] = codes[:, k] / codes[:, k].sum()
        for i in range(codes.shape[0]):
            codes[i] = codes[i] / codes[i].sum()
    return codes


def slow(z: Tensor, t: Tensor, prototypes: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    total = torch.zeros((), dtype=z.dtype)
    for v, g in pairs:
        codes = balanced(cosines(t[g], prototypes), 0.2, 3)
        scores = torch.exp(cosines(z[v], prototypes) / 0.3)
        for i in range(z.shape[1]):
            total = total - (codes[i] * torch.log(scores[i] / scores[i].sum())).sum() / z.shape[1]
    return total / len(pairs)


def test_value_and_gradient(multicrop: Any, clocked: Any, same: Any, pairs: list[tuple[int, int]]) -> None:
    objective = attached(prototypes=6, temperature=0.3, epsilon=0.2)
    assert objective.prototypes.weight.shape == (6, 5)
    views = multicrop()

    def ours(z: Tensor, t: Tensor, prototypes: Tensor) -> Tensor:
        outputs = Outputs(z, z), Outputs(t, t)
        del objective.prototypes.weight
        objective.prototypes.weight = prototypes  # type: ignore[assignment]
        return objective.terms(clocked, views, *outputs)["clustering"]

    inputs = [torch.randn(3, 7, 5), torch.randn(2, 7, 5), objective.prototypes.weight.detach().clone()]
    same(ours, lambda *x: slow(*x, pairs), inputs)


def test_the_width_comes_from_the_head_or_is_asked_for() -> None:
    def build(head: nn.Module, dim: int | None = None) -> Clustering:
        objective = Clustering(prototypes=4, dim=dim)

        class Own(BYOL):
            def __init__(self) -> None:
                super().__init__(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5)
                self.student.head = head

        objective.attach(Own())
        return objective

    assert build(nn.Linear(6, 3)).prototypes.in_dim == 3
    assert build(nn.Sequential(nn.Linear(6, 3)), dim=3).prototypes.in_dim == 3
    with pytest.raises(ValueError, match=r"objective\.clustering\.dim: not given, and Sequential has no out_dim"):
        build(nn.Sequential(nn.Linear(6, 3)))


@pytest.mark.parametrize(
    ("argument", "value"), [("prototypes", 1), ("sinkhorn_iterations", 0), ("temperature", 0.0), ("epsilon", -1.0)]
)
def test_arguments_are_checked(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"objective\.clustering\.{argument}"):
        Clustering(**{argument: value})
