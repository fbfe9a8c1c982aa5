"""What the run took, beside what the two formulas say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.config import flatten
from selfdistill.report.tables import table

_FORMULAS = (
    "<p class=formula>memory = 2·M<sub>model</sub> + M<sub>optimizer</sub> <span class=look>student and teacher, and "
    "the optimizer's state; activations come on top</span></p>"
    "<p class=formula>time of a step = 2·T<sub>forward</sub> + T<sub>backward</sub> <span class=look>both networks "
    "look, only the student learns</span></p>"
)


def cost(summary: Mapping[str, Any]) -> str:
    """Predicted and measured cost where the run stored them under ``cost``, and its time; empty without any."""
    stored = summary.get("cost")
    shown = _stored(stored) if isinstance(stored, Mapping) else ""
    rows = _rows(summary)
    spent = table([], rows, numbers=True) if rows else ""
    return f"{_FORMULAS}{shown}{spent}" if shown or spent else ""


def _rows(summary: Mapping[str, Any]) -> list[list[str]]:
    seconds, steps = summary.get("seconds", {}).get("train"), summary.get("optimizer_steps")
    rows = []
    if seconds is not None:
        rows.append(["training", f"{seconds:,.1f} s"])
        waited = summary["seconds"].get("data_wait")
        if waited is not None and seconds:
            rows.append(["of it waiting for data", f"{waited / seconds:.1%}"])
    if steps:
        rows.append(["optimizer steps", f"{steps:,}"])
    if seconds is not None and steps:
        rows.append(["a step, validation included", f"{1000 * seconds / steps:,.1f} ms"])
    if summary.get("unreadable_images"):
        rows.append(["unreadable images, skipped", f"{summary['unreadable_images']:,}"])
    return rows


def _stored(stored: Mapping[str, Any]) -> str:
    """What is in both parts side by side, then whatever else there is."""
    predicted, measured = (dict(flatten(stored.get(name) or {})) for name in ("predicted", "measured"))
    names = list(dict.fromkeys([*predicted, *measured]))
    rows = [
        [_name(n), _said(n, predicted.get(n)), _said(n, measured.get(n)), _ratio(predicted, measured, n)] for n in names
    ]
    shown = table(["", "predicted", "measured", "ratio"], rows, numbers=True) if rows else ""
    rest = {key: value for key, value in stored.items() if key not in ("predicted", "measured")}
    others = [[_name(name), _said(name, value)] for name, value in flatten(rest)]
    return shown + (table([], others, numbers=True) if others else "")


def _ratio(predicted: Mapping[str, Any], measured: Mapping[str, Any], name: str) -> str:
    expected, got = predicted.get(name), measured.get(name)
    if isinstance(expected, int | float) and isinstance(got, int | float) and expected:
        return f"{got / expected:.2f}"
    return "–"


def _name(key: str) -> str:
    for ending in ("_bytes", "_seconds"):
        key = key.removesuffix(ending)
    return key.replace("_", " ").replace(".", ", ")


def _said(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("_bytes"):
        return f"{value / 2**20:,.2f} MiB"
    if key.endswith("_seconds"):
        return f"{1000 * value:,.2f} ms"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
