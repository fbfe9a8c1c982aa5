"""The first sentence of the page, and the figures that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from selfdistill.report.read import Run
from selfdistill.report.tables import table

_KINDS = {
    "diverging": "diverging",
    "complete": "complete collapse",
    "cluster": "cluster collapse",
    "uniform": "uniform answers",
    "dimensional": "dimensional collapse",
    "teacher_stale": "stale teacher",
    "teacher_copying": "teacher copies the student",
}
_ROWS = {"trained": "trained backbone", "raw_pixels": "raw pixels", "initial": "backbone at initialisation"}
_NAMES = {"knn": "k-NN", "one_shot": "1-shot", "five_shot": "5-shot", "ten_shot": "10-shot"}


def verdict(run: Run) -> str:
    """What became of the run, in a sentence, and what ``rollback`` did."""
    summary, alarms = run.summary, run.alarms
    standing = next((alarm for alarm in reversed(alarms) if alarm["kind"] == summary.get("collapse")), None)
    bad = ""
    if not summary:
        seen = f"; seen: {', '.join(_named(a).lower() for a in alarms)}" if alarms else ""
        bad = " bad" if alarms or run.stopped else ""
        why = f"Stopped before its end: {run.stopped}. This is" if run.stopped else "Not ended: this is"
        said = f"{why} what the run has left so far{seen}."
    elif standing is not None:
        bad = " bad"
        said = f"{_named(standing)}: {standing['line'].partition(': ')[2]}."
    elif alarms:
        seen = ", ".join(_named(a).lower() for a in alarms)
        said = f"Healthy at the end{_below(summary)}; seen on the way and over again: {seen}."
    elif any(name.startswith("monitor/") for name in run.series):
        said = f"Healthy{_below(summary)}: no collapse and no stale teacher seen."
    else:
        said = "Not judged: the collapse monitor left no measurements."
    mends = "".join(f"<li>{escape(line)}</li>" for line in summary.get("mends") or [])
    after = f"<p>Rolled back:</p><ul>{mends}</ul>" if mends else ""
    return f'<p class="verdict{bad}">{escape(said)}</p>{after}'


def kind_named(kind: str) -> str:
    """A kind of alarm in words."""
    return _KINDS.get(kind, kind)


def figures(run: Run) -> str:
    """Accuracies of the trained backbone beside raw pixels and initialisation."""
    heads, rows = figure_rows(run.summary)
    if not rows:
        return ""
    shown = [[name, *("–" if value is None else f"{value:.3f}" for value in values)] for name, *values in rows]
    split = escape(run.summary.get("split") or "test")
    return f"{table(heads, shown, numbers=True)}<p class=facts>share correct, {split} split</p>"


def figure_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Heads and rows of the table of figures, None where a figure is missing."""
    found: Mapping[str, Mapping[str, float]] = summary.get("figures") or {}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    heads = ["", *(_NAMES.get(name, name.replace("_", "-")) for name in names)]
    return heads, [[_ROWS.get(row, row), *(values.get(name) for name in names)] for row, values in found.items()]


def _below(summary: Mapping[str, Any]) -> str:
    """What the trained backbone does not reach yet, by its k-NN on the test split."""
    knn = {row: values["knn"] for row, values in (summary.get("figures") or {}).items() if "knn" in values}
    trained = knn.pop("trained", None)
    above = [f"{_ROWS.get(row, row)} ({value:.3f})" for row, value in knn.items() if trained and value > trained]
    return f", but still below {' and '.join(above)} with a k-NN of {trained:.3f}" if above else ""


def _named(alarm: Mapping[str, Any]) -> str:
    return f"{kind_named(alarm['kind'])} since step {alarm['since']:,}".capitalize()
