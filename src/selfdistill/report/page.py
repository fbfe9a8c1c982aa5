"""The page itself: sections in reading order, each left out where the run has nothing for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from selfdistill.config import flatten
from selfdistill.provenance import versions
from selfdistill.report.charts import Mark, line_chart
from selfdistill.report.plane import plane
from selfdistill.report.read import Run
from selfdistill.report.style import STYLE

_KINDS = {
    "diverging": "diverging",
    "complete": "complete collapse",
    "cluster": "cluster collapse",
    "uniform": "uniform answers",
    "dimensional": "dimensional collapse",
    "teacher_stale": "stale teacher",
    "teacher_copying": "teacher copies the student",
}
_FIGURES = {"trained": "trained backbone", "raw_pixels": "raw pixels", "initial": "backbone at initialisation"}
_NAMES = {"knn": "k-NN", "one_shot": "1-shot", "five_shot": "5-shot", "ten_shot": "10-shot"}

# title, unit, {name in metrics.csv: label}
_Chart = tuple[str, str, dict[str, str]]
_CURVES: tuple[_Chart, ...] = (
    ("Validation accuracy", "share correct", {"val/knn": "k-NN", "val/probe": "probe"}),
    ("Teacher momentum", "momentum", {"teacher/momentum": "momentum"}),
    ("Learning rate", "learning rate", {"optimizer/lr": "lr"}),
)
_GEOMETRY: tuple[_Chart, ...] = (
    ("Spread", "std × √dimension", {"monitor/std": "features", "monitor/projection_std": "projections"}),
    ("Effective rank", "directions", {"monitor/rank": "features", "monitor/projection_rank": "projections"}),
    (
        "Entropy of the mean answer (1: all used)",
        "share of ln K",
        {"monitor/prototype_entropy": "student", "monitor/target_entropy": "target"},
    ),
    (
        "Sharpness (0: uniform, 1: one-hot)",
        "share of ln K",
        {"monitor/prototype_sharpness": "student", "monitor/target_sharpness": "target"},
    ),
    (
        "Information between image and prototype",
        "share of ln K",
        {"monitor/prototype_information": "student", "monitor/target_information": "target"},
    ),
)
_TEACHER: tuple[_Chart, ...] = (
    ("Age", "optimizer steps", {"monitor/teacher_age": "mean age"}),
    ("Distance from the student", "‖θt − θs‖ / ‖θs‖", {"monitor/teacher_distance": "distance"}),
    ("Agreement with the student", "cosine", {"monitor/agreement": "features"}),
)


def page(run: Run) -> str:
    """The whole HTML document; it fetches nothing."""
    summary = run.summary
    method = str(summary.get("method") or "run")
    source = run.config.get("data", {}).get("source", {}).get("_target_", "")
    facts = {
        "method": summary.get("method"),
        "data": str(source).rpartition(".")[2],
        "backbone": run.config.get("backbone", {}).get("name"),
        "evaluated network": summary.get("evaluates"),
        "seed": run.config.get("seed"),
    }
    known = " · ".join(f"{name}: {escape(str(value))}" for name, value in facts.items() if value not in (None, ""))
    alarms = run.alarms
    of_teacher = [alarm for alarm in alarms if alarm["kind"].startswith("teacher")]
    terms = {name: name.removeprefix("train/") for name in run.series if name.startswith("train/")}
    curves = (("Training loss", "loss", dict(sorted(terms.items(), key=lambda t: t[1] != "loss"))), *_CURVES)
    body = [
        f"<h1>{escape(method)} <small>{escape(run.name)}</small></h1>",
        _verdict(run),
        f"<p class=facts>{known}</p>",
        _section("Figures", _figures(summary.get("figures") or {}, summary.get("split"))),
        _section("Curves", _charts(run, curves)),
        _section("Geometry", _charts(run, _GEOMETRY, alarms, _plane(run))),
        _section("Teacher", _charts(run, _TEACHER, of_teacher)),
        _section("Cost", _cost(summary)),
        _section("Configuration", _config(run.config, run.defaults)),
        _section("Versions", _versions(run.provenance)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(method)} – {escape(run.name)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _verdict(run: Run) -> str:
    summary, alarms = run.summary, run.alarms
    standing = next((alarm for alarm in reversed(alarms) if alarm["kind"] == summary.get("collapse")), None)
    bad = ""
    if not summary:
        seen = ", ".join(_named(a).lower() for a in alarms)
        bad = " bad" if alarms else ""
        said = f"Not ended: this is what the run has left so far{f'; seen: {seen}' if alarms else ''}."
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


def _below(summary: Mapping[str, Any]) -> str:
    """What the trained backbone does not reach yet, by its k-NN on the test split."""
    knn = {row: values["knn"] for row, values in (summary.get("figures") or {}).items() if "knn" in values}
    trained = knn.pop("trained", None)
    above = [f"{_FIGURES.get(row, row)} ({value:.3f})" for row, value in knn.items() if trained and value > trained]
    return f", but still below {' and '.join(above)} with a k-NN of {trained:.3f}" if above else ""


def _named(alarm: Mapping[str, Any]) -> str:
    return f"{_KINDS.get(alarm['kind'], alarm['kind'])} since step {alarm['since']:,}".capitalize()


def _figures(figures: Mapping[str, Mapping[str, float]], split: str | None) -> str:
    if not figures:
        return ""
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    rows = [
        [_FIGURES.get(row, row), *(f"{values[n]:.3f}" if n in values else "–" for n in names)]
        for row, values in figures.items()
    ]
    heads = ["", *(_NAMES.get(name, name.replace("_", "-")) for name in names)]
    return _table(heads, rows, numbers=True) + f"<p class=facts>share correct, {escape(split or 'test')} split</p>"


def _charts(run: Run, charts: Iterable[_Chart], alarms: Iterable[Mapping[str, Any]] = (), more: str = "") -> str:
    marks = [Mark(alarm["step"], _KINDS.get(alarm["kind"], alarm["kind"]), alarm["line"]) for alarm in alarms]
    drawn = ""
    for title, unit, names in charts:
        lines = {label: run.series[name] for name, label in names.items() if name in run.series}
        if lines:
            drawn += line_chart(title, unit, lines, marks)
    drawn += more
    return f"<div class=charts>{drawn}</div>" if drawn else ""


def _plane(run: Run) -> str:
    return plane(run.series.get("monitor/alignment", []), run.series.get("monitor/uniformity", []))


def _cost(summary: Mapping[str, Any]) -> str:
    seconds, steps = summary.get("seconds", {}).get("train"), summary.get("optimizer_steps")
    rows = []
    if seconds is not None:
        rows.append(["training", f"{seconds:,.1f} s"])
    if steps:
        rows.append(["optimizer steps", f"{steps:,}"])
    if seconds is not None and steps:
        rows.append(["a step, validation included", f"{1000 * seconds / steps:,.1f} ms"])
    if summary.get("unreadable_images"):
        rows.append(["unreadable images, skipped", f"{summary['unreadable_images']:,}"])
    return _table([], rows, numbers=True) if rows else ""


def _config(config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> str:
    values = {key: _plain(value) for key, value in flatten(config) if key != "run_dir"}
    if defaults is None:
        rows = [[escape(key), escape(value)] for key, value in values.items()]
        return _cells([], rows)
    usual = {key: _plain(value) for key, value in flatten(defaults)}
    # paths inside the run's folder differ in every run
    inside = config.get("run_dir") or "\0"
    changed = [key for key, value in values.items() if usual.get(key) != value and inside not in value]
    said = "<p>As the method comes.</p>"
    if changed:
        heads = ["key", "this run", "default of the method"]
        said = _table(heads, [[key, values[key], usual.get(key, "–")] for key in changed])
    rows = [
        [f"<b>{escape(key)}</b>", f"<b>{escape(value)}</b>"] if key in changed else [escape(key), escape(value)]
        for key, value in values.items()
    ]
    return f"{said}<details><summary>all {len(rows)} keys</summary>{_cells([], rows)}</details>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _versions(provenance: Mapping[str, Any]) -> str:
    """Of the run where it stored them, else of what made the page."""
    if not provenance:
        rows = [[name, said] for name, said in versions().items()]
        return _table([], rows) + "<p class=facts>of the installation that made this page</p>"
    git = provenance.get("git")
    said = "none" if git is None else f"{git['commit']}{', with changes' if git['changed'] else ''}"
    rows = [["command", str(provenance.get("command"))], ["git", said]]
    rows += [
        [name, str(value)] for part in ("versions", "hardware") for name, value in provenance.get(part, {}).items()
    ]
    return _table([], rows)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    return _cells([escape(head) for head in heads], [[escape(cell) for cell in row] for row in rows], numbers=numbers)


def _cells(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table of cells that are HTML; the first of each row is its head."""
    top = f"<thead><tr>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead>" if heads else ""
    lines = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    kind = " class=numbers" if numbers else ""
    return f"<div class=scroll tabindex=0><table{kind}>{top}<tbody>{lines}</tbody></table></div>"
