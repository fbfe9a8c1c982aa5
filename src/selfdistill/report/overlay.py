"""Charts of many runs at once: their curves over each other, and their settings as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from selfdistill.report.axes import Axes, padded, ticks
from selfdistill.report.charts import COLOURS, thinned
from selfdistill.report.effects import MANY, numbers
from selfdistill.report.read import Series
from selfdistill.report.sweep import Job

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 368, 230, 60, 12, 10, 36
_AXIS, _TALL, _MARGIN, _LETTER = 150, 260, 90, 6.6
_DRAWN = 200

STYLE = """
.runs polyline { fill: none; stroke: var(--c); stroke-width: 1.25; opacity: .75; stroke-linejoin: round; }
.runs polyline:hover, .runs .best polyline { stroke-width: 3; opacity: 1; }
.runs .dot { stroke-linecap: round; stroke-width: 5; }
.runs .best .dot { stroke-width: 8; }
.runs .dash polyline { stroke-dasharray: 5 3; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: .25rem 0; padding: 0; list-style: none;
  font-size: .875rem; }
.legend i { display: inline-block; width: 1.5em; margin-right: .4em; border-top: 3px solid var(--c);
  vertical-align: middle; }
.legend .dash i { border-top-style: dashed; }
.wide svg { min-width: var(--least); }
.tight td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7em; background: var(--c0); }
svg .axisline { stroke: var(--soft); stroke-width: 1; }
svg .name { font-weight: 600; text-anchor: middle; }
svg .level { stroke: var(--paper); stroke-width: 3; paint-order: stroke; }
"""


@dataclass(frozen=True)
class Curve:
    """One run's line: ``group`` chooses its colour, ``label`` stands in its hover."""

    label: str
    group: int
    series: Series
    best: bool


def legend(names: Sequence[str]) -> str:
    """Which colour is which group."""
    items = "".join(f"<li{_look(place)}><i></i>{escape(name)}</li>" for place, name in enumerate(names))
    return f"<ul class=legend>{items}</ul>"


def overlay_chart(title: str, unit: str, curves: Sequence[Curve]) -> str:
    """A figure with a line for each run over the optimizer step, the best one thick and on top."""
    points = [point for curve in curves for point in curve.series]
    y_ticks = ticks(*padded(min(p[1] for p in points), max(p[1] for p in points)))
    steps = padded(min(p[0] for p in points), max(p[0] for p in points))
    axes = Axes(_LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM, steps, (y_ticks[0], y_ticks[-1]))
    drawn = [axes.drawn("optimizer step", unit)]
    for curve in sorted(curves, key=lambda curve: curve.best):
        kept = thinned(curve.series, _DRAWN)
        # a line of one point is not seen: from it to itself, with round ends, it is a dot
        way, one = axes.way(kept if len(kept) > 1 else 2 * kept), " class=dot" if len(kept) == 1 else ""
        hover = f"<title>{escape(curve.label)}</title>"
        drawn.append(f'<g{_look(curve.group, curve.best)}><polyline{one} points="{way}">{hover}</polyline></g>')
    spoken = escape(f"{title} in {unit} over the optimizer step, {len(curves)} runs")
    return (
        f'<figure class=runs><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{spoken}">{"".join(drawn)}</svg></figure>'
    )


def parallel_coordinates(keys: Sequence[str], jobs: Sequence[Job], groups: Sequence[int]) -> str:
    """A figure with an axis for each key and one for the objective, and a line for each job.

    Args:
        keys: that varied.
        jobs: with an objective, the best first.
        groups: of the jobs; it chooses the colour.
    """
    axes = [*keys, "validation k-NN"]
    columns = [[job.settings.get(key, "") for job in jobs] for key in keys]
    columns.append([str(job.objective) for job in jobs])
    in_command = sorted(jobs, key=lambda job: job.number)
    order = [list(dict.fromkeys(job.settings.get(key, "") for job in in_command)) for key in keys]
    scales = [_axis(column, single) for column, single in zip(columns, [*order, None], strict=True)]
    left = max(_MARGIN, 12 + _LETTER * max(len(_short(text, 20)) for _, text in scales[0][1]))
    width, bottom = left + _MARGIN + _AXIS * (len(axes) - 1), _TALL - 14
    drawn, heights = [], []
    for place, (name, (shares, marks)) in enumerate(zip(axes, scales, strict=True)):
        at = left + _AXIS * place
        heights.append([bottom - share * (bottom - 34) for share in shares])
        drawn.append(
            f'<text class="name" x="{at}" y="14">{escape(_short(name, 24))}</text>'
            f'<line class="axisline" x1="{at}" x2="{at}" y1="30" y2="{bottom + 4}"/>'
        )
        for share, text in marks:
            # beside the axis: of the first one where no line is, of the others over the lines
            height = bottom - share * (bottom - 34)
            where = f'x="{at + 5}"' if place else f'x="{at - 5}" text-anchor="end"'
            drawn.append(f'<text class="tick level" {where} y="{height + 4:.1f}">{escape(_short(text, 20))}</text>')
    lines = []
    for number, job in reversed(list(enumerate(jobs))):
        way = " ".join(f"{left + _AXIS * place},{column[number]:.1f}" for place, column in enumerate(heights))
        hover = f"<title>{escape(f'{job.label}: validation k-NN {job.objective:.4g}')}</title>"
        lines.append(f'<g{_look(groups[number], number == 0)}><polyline points="{way}">{hover}</polyline></g>')
    spoken = escape(f"Parallel coordinates of {len(jobs)} jobs over {', '.join(axes)}")
    return (
        f'<div class="scroll wide" tabindex=0 style="--least:{round(0.8 * width)}px"><figure class=runs>'
        f'<svg viewBox="0 0 {width} {_TALL}" style="max-width:{width}px" role="img" aria-label="{spoken}">'
        f"{''.join(lines)}{''.join(drawn)}</svg></figure></div>"
    )


def _axis(column: Sequence[str], order: Sequence[str] | None) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each value lies on its axis, from 0 to 1, and what is written along it; ``order``: single values."""
    found = numbers(column)
    if order is not None and (found is None or len(set(found)) <= MANY):
        # the first on top
        places = {name: 1 - place / (len(order) - 1) if len(order) > 1 else 0.5 for place, name in enumerate(order)}
        return [places[name] for name in column], [(place, name) for name, place in places.items()]
    assert found is not None
    wide = order is not None and min(found) > 0 and max(found) >= 8 * min(found)
    scaled = [math.log(value) for value in found] if wide else found
    low, high = padded(min(scaled), max(scaled))
    marks = [(part, low + part * (high - low)) for part in (0, 0.5, 1)]
    written = [(part, f"{math.exp(value) if wide else value:.4g}") for part, value in marks]
    return [(value - low) / (high - low) for value in scaled], written


def _look(group: int, best: bool = False) -> str:
    names = " ".join(["dash"] * (group >= COLOURS) + ["best"] * best)
    return f' class="{names}" style="--c:var(--c{group % COLOURS})"'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
