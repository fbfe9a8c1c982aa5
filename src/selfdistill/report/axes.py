"""Axes of a chart: where values lie, round numbers along them, and how those are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Axes:
    """The rectangle that a chart draws in, in units of the viewBox, and what its edges stand for.

    Attributes:
        left, right, top, bottom: edges.
        across: values at the left and at the right edge.
        up: values at the bottom and at the top.
    """

    left: float
    right: float
    top: float
    bottom: float
    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.across
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.up
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def way(self, points: Iterable[tuple[float, float]]) -> str:
        """The points of a polyline."""
        return " ".join(f"{self.x(across):.1f},{self.y(up):.1f}" for across, up in points)

    def drawn(self, across: str, up: str) -> str:
        """The grid, the ticks and the names of both axes."""
        grid = "".join(
            f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{self.left - 6}" y="{self.y(v) + 4:.1f}">{said(v)}</text>'
            for v in _inside(self.up)
        )
        below = "".join(
            f'<text class="tick" text-anchor="middle" x="{self.x(v):.1f}" y="{self.bottom + 15}">{said(v)}</text>'
            for v in _inside(self.across)
        )
        middle = (self.top + self.bottom) / 2
        return (
            f'{grid}{below}<text class="axis" x="{(self.left + self.right) / 2}" y="{self.bottom + 32}">'
            f'{escape(across)}</text><text class="axis" transform="rotate(-90 10 {middle})" x="10" y="{middle}">'
            f"{escape(up)}</text>"
        )


def padded(low: float, high: float) -> tuple[float, float]:
    """The range, or one around a single value."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    around = abs(low) / 20 or 1.0
    return low - around, high + around


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers around [low, high], 1, 2 or 5 times a power of ten apart, at most ``most`` gaps."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    apart = next((factor * power for factor in (1, 2, 5) if factor * power >= raw * (1 - 1e-9)), 10 * power)
    return [apart * place for place in range(math.floor(low / apart + 1e-9), math.ceil(high / apart - 1e-9) + 1)]


def said(value: float) -> str:
    """A number in the room of a tick."""
    if 0 < abs(value) < 1e-4 or (abs(value) < 1e-2 and len(f"{abs(value):.6g}") > 6):
        digits, _, power = f"{value:.5e}".partition("e")
        return f"{float(digits):g}e{int(power)}".replace("-", "−")
    return (f"{value:,.6g}" if abs(value) < 1e5 else f"{value / 1000:,.6g}k").replace("-", "−")


def _inside(span: tuple[float, float]) -> list[float]:
    return [value for value in ticks(*span) if span[0] <= value <= span[1]]
