"""VICReg's two terms, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import Outputs
from selfdistill.objectives import VarianceCovariance


def slow_variance(z: Tensor, target: float) -> Tensor:
    crops, images, width = z.shape
    total = torch.zeros((), dtype=z.dtype)
    for crop in z:
        for j in range(width):
            mean = sum(crop[i, j] for i in range(images)) / images
            variance = sum((crop[i, j] - mean) ** 2 for i in range(images)) / (images - 1)
            total = total + torch.clamp(target - torch.sqrt(variance + 1e-4), min=0)
    return total / width / crops


def slow_covariance(z: Tensor, ratio: float) -> Tensor:
    crops, images, width = z.shape
    total = torch.zeros((), dtype=z.dtype)
    for crop in z:
        centered = crop - crop.mean(0)
        for j in range(width):
            for k in range(width):
                if j != k:
                    total = total + (sum(centered[i, j] * centered[i, k] for i in range(images)) / (images - 1)) ** 2
    return ratio * total / width / crops


def test_value_and_gradient(multicrop: Any, clocked: Any, same: Any) -> None:
    torch.manual_seed(0)
    views, objective = multicrop(), VarianceCovariance(ratio=0.3, variance_target=0.8)

    def ours(name: str) -> Any:
        return lambda z: objective.terms(clocked, views, Outputs(z, torch.zeros(3, 7, 2)), None)[name]

    z = 0.7 * torch.randn(3, 7, 4)
    same(ours("variance"), lambda z: slow_variance(z, 0.8), [z])
    same(ours("covariance"), lambda z: slow_covariance(z, 0.3), [z])


def test_half_precision_projections_are_computed_in_float32(multicrop: Any, clocked: Any) -> None:
    z = torch.randn(3, 7, 4, dtype=torch.bfloat16)
    terms = VarianceCovariance().terms(clocked, multicrop(), Outputs(z, z), None)
    assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.mark.parametrize(("argument", "value"), [("ratio", -1.0), ("variance_target", 0.0), ("eps", 0.0)])
def test_arguments_are_checked(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"objective\.variance_covariance\.{argument}: {value} given"):
        VarianceCovariance(**{argument: value})
