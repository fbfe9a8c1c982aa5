"""Views with two crops for both networks and a small one for the student, and comparison with a slow restatement."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.schedules import Clock
from selfdistill.views import Views

BOTH, STUDENT = frozenset({"teacher", "student"}), frozenset({"student"})
PAIRS = [(0, 1), (1, 0), (2, 0), (2, 1)]
"""(student slot, teacher slot) of `multicrop`."""

Same = Callable[[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]], None]


@pytest.fixture
def pairs() -> list[tuple[int, int]]:
    return list(PAIRS)


@pytest.fixture
def multicrop() -> Callable[..., Views]:
    """``multicrop(batch)``: an uneven batch by default."""

    def made(batch: int = 7, labels: Tensor | None = None) -> Views:
        crops = [torch.randn(batch, 1, size, size) for size in (8, 8, 6)]
        return Views(crops, (BOTH, BOTH, STUDENT), labels=labels)

    return made


@pytest.fixture
def masked_views() -> Callable[..., Views]:
    """``masked_views(mask [2, B, 16])``: `multicrop` with masks of its first two crops, in patches of 2 pixels."""

    def made(mask: Tensor) -> Views:
        torch.manual_seed(3)
        crops = [torch.randn(mask.shape[1], 1, size, size) for size in (8, 8, 6)]
        masked, weight = [], []
        for position, row in enumerate(mask.flatten(0, 1).tolist()):
            for patch, hidden in enumerate(row):
                if hidden:
                    masked.append(position * 16 + patch)
                    weight.append(1 / sum(row))
        masks = {"mask": mask, "masked": torch.tensor(masked or [0]), "masked_weight": torch.tensor(weight or [0.0])}
        return Views(crops, (BOTH, BOTH, STUDENT), masks)

    return made


@pytest.fixture
def clocked() -> Any:
    """All that a term without network asks of a module."""
    return SimpleNamespace(clock=Clock(step=5, total_steps=10))


@pytest.fixture
def same() -> Same:
    """``same(ours, slow, inputs)``: equal values, and equal gradients of every input, to 1e-5 of float32."""

    def compare(ours: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        found, wanted = (
            [x.detach().to(kind).requires_grad_() for x in inputs] for kind in (torch.float32, torch.float64)
        )
        value, expected = ours(*found), slow(*wanted)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        value.backward()
        expected.backward()
        for a, b in zip(found, wanted, strict=True):
            gradient = torch.zeros_like(b) if b.grad is None else b.grad
            given = torch.zeros_like(a) if a.grad is None else a.grad
            torch.testing.assert_close(given.double(), gradient, rtol=1e-4, atol=1e-6)

    return compare
