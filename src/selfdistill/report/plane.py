"""The alignment–uniformity plane (Wang and Isola, arXiv 2005.10242): the way that a run takes through it."""

from __future__ import annotations

from selfdistill.report.axes import Axes, padded
from selfdistill.report.charts import thinned
from selfdistill.report.read import Series

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = (368, 210), 60, 24, 14, 36


def plane(alignment: Series, uniformity: Series) -> str:
    """A figure of both measures, from the first step that has both to the last; empty without two such steps."""
    other = dict(uniformity)
    points = [(step, value, other[step]) for step, value in alignment if step in other]
    if len(points) < 2:
        return ""
    width, height = _SIZE
    across, up = (padded(min(p[place] for p in points), max(p[place] for p in points)) for place in (1, 2))
    axes = Axes(_LEFT, width - _RIGHT, _TOP, height - _BOTTOM, across, up)
    x, y = axes.x, axes.y
    drawn = [axes.drawn("alignment (low: close)", "uniformity")]
    kept = {step for step, _ in thinned([(p[0], p[1]) for p in points], 100)}
    shown = [point for point in points if point[0] in kept]
    way = axes.way((a, u) for _, a, u in shown)
    told = "".join(
        f'<circle cx="{x(a):.1f}" cy="{y(u):.1f}" r="{5 if place in (0, len(shown) - 1) else 2.5}">'
        f"<title>step {step:,.0f}: alignment {a:.4g}, uniformity {u:.4g}</title></circle>"
        for place, (step, a, u) in enumerate(shown)
    )
    ends = "".join(
        f'<text x="{min(max(x(a), _LEFT + 16), width - 16):.1f}" y="{y(u) - 8 if y(u) > 40 else y(u) + 18:.1f}" '
        f'text-anchor="middle">{name}</text>'
        for name, (_, a, u) in (("start", shown[0]), ("end", shown[-1]))
    )
    drawn.append(f'<g class="line few" style="--c:var(--c0)"><polyline points="{way}"/>{told}{ends}</g>')
    return (
        f'<figure><figcaption>Alignment and uniformity</figcaption><svg viewBox="0 0 {width} {height}" role=img '
        f'aria-label="alignment against uniformity, a point a measurement">{"".join(drawn)}</svg>'
        "<p class=look>Down and left is better: views of an image close (alignment), images spread (uniformity). "
        "Down-left and back up: a collapse.</p></figure>"
    )
