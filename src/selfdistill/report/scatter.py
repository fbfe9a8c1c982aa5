"""Points in the plane, coloured by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from statistics import median

from selfdistill.report.axes import Axes, padded

_WIDTH, _HEIGHT, _EDGE, _FOOT = 368, 300, 14, 26

CLASSES = 10
"""Classes that have a colour: the page defines ``--k0`` … ``--k9``; images of further ones are grey."""


def scatter(title: str, axes: tuple[str, str], points: Sequence[Sequence[float]], classes: Sequence[int]) -> str:
    """A figure of ``points`` (x, y), those of a class in a colour, which bears its name at its median.

    Args:
        title: of the figure.
        axes: names of both axes; an axis without a name has no meaning.
        points: one an image.
        classes: of each point.
    """
    right, bottom = _WIDTH - _EDGE, _HEIGHT - _FOOT
    place = Axes(_FOOT, right, _EDGE, bottom, *(padded(min(v), max(v)) for v in zip(*points, strict=True)))
    # the most frequent ones, in the order of their numbers
    coloured = sorted(label for label, _ in Counter(classes).most_common(CLASSES))
    drawn, names = [], []
    for label in [None, *coloured]:
        mine = [
            (place.x(point[0]), place.y(point[1]))
            for point, own in zip(points, classes, strict=True)
            if (own == label if label is not None else own not in coloured)
        ]
        if not mine:
            continue
        colour = "var(--rule)" if label is None else f"var(--k{coloured.index(label)})"
        drawn.append(f'<path style="stroke:{colour}" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x, y in mine)}"/>')
        if label is not None:
            x, y = (median(values) for values in zip(*mine, strict=True))
            names.append(f'<text x="{x:.1f}" y="{y + 4:.1f}">{label}</text>')
    across, up = axes
    size = f'width="{right - _FOOT + 16}" height="{bottom - _EDGE + 16}"'
    frame = f'<rect class=frame x="{_FOOT - 8}" y="{_EDGE - 8}" {size}/>'
    middle = (_EDGE + bottom) / 2
    written = (
        f'<text class="axis" x="{(_FOOT + right) / 2}" y="{_HEIGHT - 2}">{escape(across)}</text>'
        f'<text class="axis" transform="rotate(-90 11 {middle})" x="11" y="{middle}">{escape(up)}</text>'
        if across
        else ""
    )
    spoken = f"{title}: {len(points)} images of {len(set(classes))} classes"
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class=scatter viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img '
        f'aria-label="{escape(spoken)}">{frame}<g class=points>{"".join(drawn)}</g><g class=names>{"".join(names)}</g>'
        f"{written}</svg></figure>"
    )
