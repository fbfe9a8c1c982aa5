"""Durations as a person reads them."""

from __future__ import annotations

import pytest

from selfdistill.costs.table import binary, decimal
from selfdistill.text_table import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (24e-6, "24 µs"),
        (0.0409, "40.9 ms"),
        (0.24, "240 ms"),
        (0.9996, "1 s"),
        (1.834, "1.83 s"),
        (34, "34 s"),
        (99.96, "1 min 40 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_no_quantity_has_an_exponent() -> None:
    for tenths in range(1, 20_000, 7):
        for said in (duration(tenths / 10_000), binary(tenths / 10 * 1024), decimal(tenths / 10 * 1000)):
            assert "e" not in said, said
