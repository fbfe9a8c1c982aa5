from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from selfdistill.optim import Lars

SHAPES = [(5, 3), (2, 3, 3, 3), (7,)]
STEPS = 6


def byol_lars(
    parameters: list[np.ndarray],
    gradients: list[list[np.ndarray]],
    rates: list[float],
    decay: float,
    excluded: list[bool],
) -> list[np.ndarray]:
    """One number after the other, in float64, from the formulas of the paper's own optimizer."""
    parameters = [p.copy() for p in parameters]
    velocities = [np.zeros_like(p) for p in parameters]
    for step, rate in enumerate(rates):
        for i, p in enumerate(parameters):
            g = gradients[step][i]
            if not excluded[i]:
                g = g + decay * p
                p_norm, g_norm = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
                g = g * (1e-3 * p_norm / g_norm if p_norm > 0 and g_norm > 0 else 1.0)
            velocities[i] = 0.9 * velocities[i] + g
            parameters[i] = p - rate * velocities[i]
    return parameters


def draw(dtype: torch.dtype) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]
    gradients = [[torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES] for _ in range(STEPS)]
    return parameters, gradients


def train(optimizer: torch.optim.Optimizer, gradients: list[list[Tensor]], rates: list[float]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, rate in enumerate(rates):
        for p, g in zip(parameters, gradients[step], strict=True):
            p.grad = g.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("decay", [0.0, 1.5e-6, 0.3])
def test_follows_byol(dtype: torch.dtype, tolerance: float, decay: float) -> None:
    start, gradients = draw(dtype)
    rates = [0.0, 1.0, 3.0, 2.0, 5.0, 0.5]
    expected = byol_lars(
        [p.double().numpy() for p in start],
        [[g.double().numpy() for g in step] for step in gradients],
        rates,
        decay,
        [False, False, True],
    )
    parameters = [p.clone().requires_grad_() for p in start]
    groups = [
        {"params": parameters[:2], "weight_decay": decay},
        {"params": parameters[2:], "weight_decay": 0.0, "adapt": False},
    ]
    train(Lars(groups, lr=1.0), gradients, rates)
    for parameter, value in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=tolerance, atol=tolerance)


def test_is_timms_where_nothing_is_decayed() -> None:
    from timm.optim.lars import Lars as TimmLars

    start, gradients = draw(torch.float32)
    ours = [p.clone().requires_grad_() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    rates = [1.0] * STEPS
    train(Lars(ours, lr=1.0), gradients, rates)
    train(TimmLars(theirs, lr=1.0, momentum=0.9, always_adapt=True), gradients, rates)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("zero", ["parameter", "gradient"])
def test_ratio_is_one_where_a_norm_is_zero(zero: str) -> None:
    parameter = torch.full((4,), 0.0 if zero == "parameter" else 2.0, requires_grad=True)
    parameter.grad = torch.full((4,), 0.0 if zero == "gradient" else 3.0)
    Lars([parameter], lr=0.5).step()
    assert parameter.tolist() == ([-1.5] * 4 if zero == "parameter" else [2.0] * 4)


def test_moves_by_the_trust_coefficient() -> None:
    """Whatever the size of the gradient, the first step has the length lr·η·‖p‖."""
    for scale in (1e-12, 1.0, 1e12):
        parameter = torch.tensor([3.0, 4.0], requires_grad=True)
        parameter.grad = scale * torch.tensor([1.0, 2.0])
        Lars([parameter], lr=2.0, trust_coefficient=0.01).step()
        assert (parameter.detach() - torch.tensor([3.0, 4.0])).norm().item() == pytest.approx(0.1, rel=1e-5)


def test_parameters_without_gradient_stay_and_get_no_state() -> None:
    moved, frozen = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    moved.grad = torch.ones(3)
    optimizer = Lars([moved, frozen], lr=1.0, weight_decay=0.1)
    optimizer.step()
    assert frozen.tolist() == [1.0] * 3
    assert frozen not in optimizer.state
    assert moved.tolist() != [1.0] * 3


def test_gradients_are_left_as_they_were() -> None:
    parameter = torch.ones(3, requires_grad=True)
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    Lars([parameter], lr=1.0, weight_decay=0.5).step()
    assert parameter.grad.tolist() == [1.0, 2.0, 3.0]


def test_closure_and_resumption() -> None:
    start, gradients = draw(torch.float64)

    def make() -> tuple[list[Tensor], Lars]:
        parameters = [p.clone().requires_grad_() for p in start]
        return parameters, Lars(parameters, lr=1.0, weight_decay=0.01)

    whole, optimizer = make()
    train(optimizer, gradients, [1.0] * STEPS)

    _, first = make()
    train(first, gradients, [1.0] * 3)
    halves = [p.detach().clone().requires_grad_() for p in first.param_groups[0]["params"]]
    second = Lars(halves, lr=9.0)
    second.load_state_dict(first.state_dict())
    train(second, gradients[3:], [1.0] * 3)
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)

    parameter = torch.tensor([2.0], requires_grad=True)
    optimizer = Lars([parameter], lr=1.0, adapt=False)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert parameter.item() == -2.0
