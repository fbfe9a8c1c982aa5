"""The trace of live bytes: every storage once, until it is freed."""

from __future__ import annotations

import pytest
import torch

from selfdistill.costs.trace import Trace


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bytes_live_and_die_with_their_storage(device: str) -> None:
    given, kept = torch.empty(5, device=device), torch.empty(3, device=device)
    with Trace() as trace:
        trace.ignore(given)
        view = given[1:]
        assert trace.alive == 0
        first = torch.empty(10, device=device)
        second = first.view(2, 5)
        assert trace.alive == 40
        del first
        assert trace.alive == 40
        third = second + 1
        assert (trace.alive, trace.peak) == (80, 80)
        del second, third
        assert (trace.alive, trace.peak) == (0, 80)
        view += 1
        assert trace.alive == 0
        trace.adopt(kept)
        assert trace.alive == 12
        del kept
        assert trace.alive == 0


def test_products_are_counted() -> None:
    with Trace() as trace:
        torch.empty(3, 4, device="meta") @ torch.empty(4, 5, device="meta")
        assert trace.flops == 2 * 3 * 4 * 5
        torch.nn.functional.conv2d(torch.empty(1, 2, 8, 8, device="meta"), torch.empty(6, 2, 3, 3, device="meta"))
    assert trace.flops == 2 * 3 * 4 * 5 + 2 * 6 * 6 * 6 * 2 * 9
