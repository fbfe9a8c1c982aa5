"""KoLeo, written out: nearest neighbours by hand, each crop by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import Outputs
from selfdistill.objectives import KoLeo


def slow(features: Tensor) -> Tensor:
    """The two crops of the first size; the small one has no part in it."""
    total = torch.zeros((), dtype=features.dtype)
    for crop in features[:2]:
        unit = [x / x.norm() for x in crop]
        for i, x in enumerate(unit):
            distances = [(x - y).norm() for j, y in enumerate(unit) if j != i]
            total = total - torch.log(min(distances) + 1e-8) / len(unit)
    return total / 2


def test_value_and_gradient(multicrop: Any, clocked: Any, same: Any) -> None:
    torch.manual_seed(0)
    views = multicrop()

    def ours(features: Tensor) -> Tensor:
        (term,) = KoLeo().terms(clocked, views, Outputs(features, features), None).items()
        assert term[0] == "koleo"
        return term[1]

    same(ours, slow, [torch.randn(3, 7, 5)])


def test_eps_is_checked() -> None:
    with pytest.raises(ValueError, match=r"objective\.koleo\.eps: 0 given"):
        KoLeo(0)
