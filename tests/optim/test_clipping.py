from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfdistill.optim.clipping import clip_gradients

NAMES = ["student.backbone.a", "student.backbone.b.c", "student.head.a", "predictor.a.b", "predictor.c"]
PARTS = {
    "global": [NAMES],
    "parameter": [[name] for name in NAMES],
    "module": [NAMES[:2], NAMES[2:3], NAMES[3:]],
}


def network(seed: int, sizes: list[float]) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    named = []
    for name, size in zip(NAMES, sizes, strict=True):
        parameter = nn.Parameter(torch.zeros(3, 2))
        parameter.grad = size * torch.randn(3, 2, generator=generator)
        named.append((name, parameter))
    return named


@pytest.mark.parametrize("mode", list(PARTS))
@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    sizes=st.lists(st.sampled_from([0.0, 1e-8, 0.1, 1.0, 3.0, 1e6]), min_size=5, max_size=5),
    largest=st.sampled_from([1e-3, 0.5, 3.0, 30.0]),
)
def test_coefficient_of_every_part(mode: str, seed: int, sizes: list[float], largest: float) -> None:
    named = network(seed, sizes)
    before = {name: p.grad.double().clone() for name, p in named if p.grad is not None}
    clip_gradients(named, largest, mode)  # type: ignore[arg-type]
    after = {name: p.grad for name, p in named}
    for part in PARTS[mode]:
        norm = math.sqrt(sum(float((before[name] ** 2).sum()) for name in part))
        factor = min(1.0, largest / (norm + 1e-6))
        for name in part:
            expected = (before[name] * factor).float()
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mode", list(PARTS))
def test_the_norm_is_kept_from_zero_as_in_dino(mode: str) -> None:
    """1e-6 is added to the norm, which shows where the gradient is as small."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3e-6, 4e-6])
    clip_gradients([("head.a", parameter)], 3e-6, mode)  # type: ignore[arg-type]
    assert parameter.grad.norm().item() == pytest.approx(5e-6 * 3e-6 / (5e-6 + 1e-6), rel=1e-5)


def test_small_gradients_keep_every_bit() -> None:
    for mode in PARTS:
        named = network(1, [0.1] * 5)
        before = [p.grad.clone() for _, p in named if p.grad is not None]
        clip_gradients(named, 1e3, mode)  # type: ignore[arg-type]
        torch.testing.assert_close([p.grad for _, p in named], before, rtol=0, atol=0)


@pytest.mark.parametrize("mode", list(PARTS))
def test_missing_gradients_are_passed_over(mode: str) -> None:
    named = network(2, [1.0] * 5)
    named[0][1].grad = None
    clip_gradients(named, 0.1, mode)  # type: ignore[arg-type]
    assert named[0][1].grad is None
    for _, parameter in named:
        parameter.grad = None
    clip_gradients(named, 0.1, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", list(PARTS))
def test_a_tied_parameter_is_clipped_once(mode: str) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    clip_gradients([("head.a", parameter), ("head.b", parameter)], 1.0, mode)  # type: ignore[arg-type]
    assert parameter.grad.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_a_part_that_is_not_finite_leaves_the_others_alone() -> None:
    named = network(3, [1.0] * 5)
    named[2][1].grad = torch.full((3, 2), math.inf)
    clip_gradients(named, 0.5, "module")
    finite = [p.grad is not None and bool(p.grad.isfinite().all()) for _, p in named]
    assert finite == [True, True, False, True, True]
