"""Mean-entropy maximisation, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import Outputs
from selfdistill.objectives import MeMax
from selfdistill.schedules import LinearSchedule


def slow(z: Tensor, temperature: float) -> Tensor:
    rows = [z[v, i] for v in range(z.shape[0]) for i in range(z.shape[1])]
    mean = torch.zeros(z.shape[2], dtype=z.dtype)
    for row in rows:
        e = torch.exp(row / temperature)
        mean = mean + e / e.sum() / len(rows)
    entropy = -sum(p * torch.log(p) for p in mean)
    return torch.log(torch.tensor(z.shape[2], dtype=z.dtype)) - entropy


def test_value_and_gradient_at_the_temperature_of_the_step(multicrop: Any, clocked: Any, same: Any) -> None:
    torch.manual_seed(0)
    views, objective = multicrop(), MeMax(LinearSchedule(0.2, 0.6))  # step 5 of 10: 0.4

    def ours(z: Tensor) -> Tensor:
        return objective.terms(clocked, views, Outputs(z, z), None)["me_max"]

    same(ours, lambda z: slow(z, 0.4), [torch.randn(3, 7, 5)])


def test_one_cluster_for_all_costs_log_k(multicrop: Any, clocked: Any) -> None:
    z = torch.zeros(3, 7, 4)
    z[..., 1] = 100
    assert MeMax().terms(clocked, multicrop(), Outputs(z, z), None)["me_max"] == pytest.approx(torch.tensor(4.0).log())


def test_temperature_is_checked() -> None:
    with pytest.raises(ValueError, match=r"objective\.me_max\.temperature"):
        MeMax(0.0)
