"""Tables and durations, as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], header: Sequence[str], *, left: int = 1) -> str:
    """Columns under their heads, the first ``left`` of them to the left, the others, of numbers, to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def placed(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return "\n".join(map(placed, lines))


def duration(seconds: float) -> str:
    """Such as ``240 ms``, ``1.83 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if 0 < seconds < 0.9995:
        thousandths = 1e3 * seconds
        return f"{thousandths:.3g} ms" if thousandths >= 0.9995 else f"{1e3 * thousandths:.3g} µs"
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
