"""Line charts as inline SVG; colours and fonts are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from selfdistill.report.axes import Axes, padded, ticks
from selfdistill.report.read import Series

# In units of the viewBox, which on a phone is about one a pixel.
_WIDTH, _HEIGHT = 368, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 78, 10, 36
# The right margin holds the names of the lines, and grows with them up to this.
_WIDEST = 170
_ROW = 13
_LETTER = 6.6
# Points that are drawn of a line, those of them that tell their value, and how many at most are seen as dots.
_DRAWN, _TOLD, _DOTS = 300, 60, 12

COLOURS = 6
"""Of lines: the page defines ``--c0`` … ``--c5``; the next ones are dashed."""


@dataclass(frozen=True)
class Mark:
    """A vertical line: its optimizer step, a short name and what stands in its hover."""

    step: float
    label: str
    text: str


def line_chart(title: str, unit: str, lines: dict[str, Series], marks: Sequence[Mark] = (), look: str = "") -> str:
    """A figure: a line for each entry of ``lines`` over the optimizer step, labelled at its end.

    Args:
        title: what is drawn.
        unit: what the vertical axis is counted in.
        lines: by label; none of them empty.
        marks: drawn over the whole height.
        look: what to look for, below the chart.
    """
    points = [point for series in lines.values() for point in series]
    steps = [step for step, _ in points] + [mark.step for mark in marks]
    # from the start of the run, so that charts can be read beside each other
    x_low, x_high = padded(0 if 0 < min(steps) < 0.5 * max(steps) else min(steps), max(steps))
    values = [value for _, value in points]
    y_ticks = ticks(*padded(min(values), max(values)))
    y_low, y_high = min(y_ticks[0], *values), max(y_ticks[-1], *values)
    right = _WIDTH - max(_RIGHT, min(16 + _LETTER * max(map(len, lines)), _WIDEST))
    rows = _rows(marks, x_low, x_high, right)
    top = _TOP + _ROW * (1 + max(rows, default=-1))
    bottom = top + _HEIGHT - _TOP - _BOTTOM
    height = bottom + _BOTTOM

    axes = Axes(_LEFT, right, top, bottom, (x_low, x_high), (y_low, y_high))
    drawn = [axes.drawn("optimizer step", unit)]
    posts, names = [], []
    for mark, row in zip(marks, rows, strict=True):
        at, above = axes.x(mark.step), _TOP + _ROW * row
        start = min(at, _WIDTH - _LETTER * len(mark.label))
        hover = f'<g class="mark"><title>{escape(mark.text)}</title>'
        posts.append(f'{hover}<line x1="{at:.1f}" x2="{at:.1f}" y1="{above + 3}" y2="{bottom}"/></g>')
        names.append(f'{hover}<text x="{start:.1f}" y="{above}">{escape(mark.label)}</text></g>')
    drawn += posts + names
    ends = _apart([axes.y(series[-1][1]) for series in lines.values()], top, bottom)
    for place, ((label, series), end) in enumerate(zip(lines.items(), ends, strict=True)):
        way, last = axes.way(thinned(series, _DRAWN)), axes.way(series[-1:])
        dots = " few" if len(series) <= _DOTS else ""
        told = "".join(
            f'<circle cx="{axes.x(step):.1f}" cy="{axes.y(value):.1f}" r="3"><title>'
            f"{escape(label)} {value:.4g} at step {step:,.0f}</title></circle>"
            for step, value in thinned(series, _TOLD)
        )
        dash = " dash" if place >= COLOURS else ""
        drawn.append(
            f'<g class="line{dash}{dots}" style="--c:var(--c{place % COLOURS})"><polyline points="{way}"/>'
            f'<polyline class="lead" points="{last} {right + 10},{end:.1f}"/>{told}'
            f'<text x="{right + 13}" y="{end + 4:.1f}">{escape(label)}</text></g>'
        )
    spoken = escape(f"{title} in {unit} over the optimizer step: {', '.join(lines)}")
    below = f"<p class=look>{escape(look)}</p>" if look else ""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{spoken}">{"".join(drawn)}</svg>{below}</figure>'
    )


def thinned(series: Series, most: int) -> Series:
    """At most ``most`` points: of each stretch the lowest and the highest, so that no spike is lost, and the last."""
    if len(series) <= most:
        return series
    size = math.ceil(len(series) / ((most - 1) / 2))
    kept: Series = []
    for start in range(0, len(series), size):
        places = range(start, min(start + size, len(series)))
        ends = {min(places, key=lambda p: series[p][1]), max(places, key=lambda p: series[p][1])}
        kept += [series[place] for place in sorted(ends)]
    return [*kept[: most - 1], series[-1]]


def _apart(wanted: list[float], top: float, bottom: float) -> list[float]:
    """Heights of labels near ``wanted``, a row from each other, inside the chart where there is room."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    got = dict[int, float]()
    free = top
    for place in order:
        got[place] = free = max(wanted[place], free)
        free += _ROW
    limit = bottom
    for place in reversed(order):
        got[place] = min(got[place], limit)
        limit = got[place] - _ROW
    return [got[place] for place in range(len(wanted))]


def _rows(marks: Sequence[Mark], x_low: float, x_high: float, right: float) -> list[int]:
    """For each mark a row above the chart in which its label covers no other."""
    taken: list[list[tuple[float, float]]] = []
    rows = []
    for mark in marks:
        width = _LETTER * len(mark.label)
        start = _LEFT + (mark.step - x_low) / (x_high - x_low) * (right - _LEFT)
        start = min(start, _WIDTH - width)
        row = 0
        while row < len(taken) and any(start < end + 6 and begin < start + width + 6 for begin, end in taken[row]):
            row += 1
        if row == len(taken):
            taken.append([])
        taken[row].append((start, start + width))
        rows.append(row)
    return rows
