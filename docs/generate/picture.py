"""The picture of a method's data flow: an SVG from a short specification in the front matter of its page.

``student`` and ``teacher`` list an input and the boxes that it passes; the boxes that the teacher has are those that it
mirrors. ``targets`` come after the teacher, ``loss`` has the lines of the last box, ``state`` is what earlier steps
left (``feeds`` targets or loss). ``follows`` is what ties teacher to student: its moving average by default, or
``same network``. Colours are in assets/site.css, for light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HEIGHT, _GAP, _MARGIN = 40, 30, 14
_ROWS = {"student": 34, "teacher": 150, "state": 242}


def svg(spec: Mapping[str, Any], name: str) -> str:
    """The picture, to stand in the page itself so that it takes the page's colours."""
    student, teacher = list(spec["student"]), list(spec["teacher"])
    targets, loss = list(spec.get("targets", [])), list(spec["loss"])
    mirrored = len(teacher) - 1
    rows = (student, teacher + targets)
    widths = [max(_width(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lefts = [_MARGIN + sum(widths[:i]) + _GAP * i for i in range(len(widths) + 1)]
    loss_left, loss_width = lefts[-1] + 50, max(map(_width, loss))
    parts: list[str] = []
    for kind, row in zip(("student", "teacher"), rows, strict=True):
        parts += _row(kind, row, lefts, widths, mirrored, loss_left)
    parts += _follows(spec.get("follows", "moving average"), lefts, widths, mirrored)
    middle = (_ROWS["student"] + _ROWS["teacher"] + _HEIGHT) / 2
    parts.append(_box("loss", loss_left, middle - 13 - 10 * len(loss), loss_width, 26 + 20 * len(loss), loss))
    height = _ROWS["teacher"] + _HEIGHT + 18 + _MARGIN
    if "state" in spec:
        last = len(rows[1]) - 1
        parts += _state(spec, lefts[last] + widths[last] / 2, loss_left + loss_width / 2, middle + 13 + 10 * len(loss))
        height = _ROWS["state"] + _HEIGHT + _MARGIN
    width = loss_left + loss_width + _MARGIN
    label = f"Data flow of {name}: {' to '.join(student)}; {' to '.join(rows[1])}; both into the loss"
    head = (
        f'<svg viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker></defs>'
    )
    return f'<div class="flow">{head}{"".join(parts)}</svg></div>'


def _width(text: str) -> float:
    return max(76.0, 7.4 * len(text) + 22)


def _box(kind: str, x: float, y: float, width: float, height: float, lines: Sequence[str]) -> str:
    first = y + height / 2 - 10 * (len(lines) - 1) + 5
    text = "".join(
        f'<text x="{x + width / 2:.0f}" y="{first + 20 * i:.0f}">{escape(line)}</text>' for i, line in enumerate(lines)
    )
    radius = height / 2 if kind == "input" else 6
    rect = f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="{radius:.0f}"/>'
    return f'<g class="{kind}">{rect}{text}</g>'


def _arrow(points: Sequence[tuple[float, float]], kind: str = "arrow") -> str:
    path = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}" marker-end="url(#tip)"/>'


def _note(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="note" style="text-anchor:{anchor}" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


def _row(
    kind: str, row: list[str], lefts: list[float], widths: list[float], mirrored: int, loss_left: float
) -> list[str]:
    y = _ROWS[kind]
    middle = y + _HEIGHT / 2
    right = lefts[mirrored] + widths[mirrored]
    frame = (
        f'<rect class="frame {kind}" x="{lefts[1] - 9:.0f}" y="{y - 9}" width="{right - lefts[1] + 18:.0f}" '
        f'height="{_HEIGHT + 18}" rx="10"/>'
    )
    parts = [frame, _note(lefts[0], y - 14 if kind == "student" else y + _HEIGHT + 22, kind, "start")]
    for i, text in enumerate(row):
        style = "input" if i == 0 else kind if i <= mirrored or kind == "student" else "target"
        parts.append(_box(style, lefts[i], y, widths[i], _HEIGHT, [text]))
        if i:
            parts.append(_arrow([(lefts[i - 1] + widths[i - 1] + 2, middle), (lefts[i] - 3, middle)]))
    end = lefts[len(row) - 1] + widths[len(row) - 1] + 2
    into = middle + (26 if kind == "student" else -26)
    bend = loss_left - 22
    if kind == "teacher":
        # two strokes across the line, beyond the frame: no gradient flows back
        beyond = end + (15 if len(row) == mirrored + 1 else 6)
        parts.append(f'<path class="stop" d="M{beyond:.0f} {middle + 8:.0f}l6 -16m4 16l6 -16"/>')
        parts.append(_note(beyond, middle + 24, "no gradient", "start"))
    parts.append(_arrow([(end, middle), (bend, middle), (bend, into), (loss_left - 3, into)]))
    return parts


def _follows(how: str, lefts: list[float], widths: list[float], mirrored: int) -> list[str]:
    x = (lefts[1] + lefts[mirrored] + widths[mirrored]) / 2
    top, bottom = _ROWS["student"] + _HEIGHT + 11, _ROWS["teacher"] - 12
    return [_arrow([(x, top), (x, bottom)], "follow"), _note(x + 10, (top + bottom) / 2 + 4, how, "start")]


def _state(spec: Mapping[str, Any], x: float, loss_x: float, loss_bottom: float) -> list[str]:
    width, top = _width(spec["state"]), _ROWS["state"]
    left = max(x - width / 2, _MARGIN)
    parts = [_box("state", left, top, width, _HEIGHT, [spec["state"]])]
    below = _ROWS["teacher"] + _HEIGHT
    parts.append(_arrow([(x - 12, below + 2), (x - 12, top - 3)], "follow"))
    parts.append(_note(x - 20, top - 22, "after the step", "end"))
    if spec.get("feeds", "loss") == "targets":
        parts.append(_arrow([(x + 12, top - 2), (x + 12, below + 3)]))
    else:
        middle = top + _HEIGHT / 2
        parts.append(_arrow([(left + width + 2, middle), (loss_x, middle), (loss_x, loss_bottom + 3)]))
    return parts
