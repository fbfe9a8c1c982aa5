"""Which charts there are, of which logged series, and what to look for in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from selfdistill.report.charts import Mark, line_chart
from selfdistill.report.plane import plane
from selfdistill.report.read import Run
from selfdistill.report.verdict import kind_named


class Chart(NamedTuple):
    """``lines`` maps names in metrics.csv to labels."""

    title: str
    unit: str
    lines: Mapping[str, str]
    look: str


_CURVES = (
    Chart(
        "Validation accuracy",
        "share correct",
        {"val/knn": "k-NN", "val/probe": "probe"},
        "Rises while the loss may do anything. Flat from the start: nothing is learned, or it was nearly full before.",
    ),
    Chart(
        "Teacher momentum",
        "momentum m",
        {"teacher/momentum": "momentum"},
        "At a constant m the teacher gets m / (1 − m) steps old.",
    ),
    Chart(
        "Learning rate",
        "learning rate",
        {"optimizer/lr": "lr"},
        "Rises while warming up, then falls.",
    ),
)
_GEOMETRY = (
    Chart(
        "Spread",
        "std × √dimension",
        {"monitor/std": "features", "monitor/projection_std": "projections"},
        "1: directions spread evenly. Towards 0: complete collapse, all images one vector.",
    ),
    Chart(
        "Effective rank",
        "directions",
        {"monitor/rank": "features", "monitor/projection_rank": "projections"},
        "Falls while a run begins to learn. Down to one or two, and there to stay: dimensional collapse.",
    ),
    Chart(
        "Entropy of the mean answer",
        "share of ln K",
        {"monitor/prototype_entropy": "student", "monitor/target_entropy": "target"},
        "1: all prototypes are used. Towards 0: cluster collapse, one takes all.",
    ),
    Chart(
        "Sharpness",
        "share of ln K",
        {"monitor/prototype_sharpness": "student", "monitor/target_sharpness": "target"},
        "0: every answer is uniform and teaches nothing. 1: one-hot.",
    ),
    Chart(
        "Information between image and prototype",
        "share of ln K",
        {"monitor/prototype_information": "student", "monitor/target_information": "target"},
        "Above 0 and rising: images differ in their answers.",
    ),
)
_TEACHER = (
    Chart(
        "Age",
        "optimizer steps",
        {"monitor/teacher_age": "mean age"},
        "How old the student is that the teacher remembers. Grows where m rises to 1; stale: most of the run.",
    ),
    Chart(
        "Distance from the student",
        "‖θt − θs‖ / ‖θs‖",
        {"monitor/teacher_distance": "distance"},
        "0 all along: a copy, with nothing of its own to teach. Growing without end: it is left behind.",
    ),
    Chart(
        "Agreement with the student",
        "cosine",
        {"monitor/agreement": "features"},
        "Falling while the distance grows: a stale teacher.",
    ),
)


def curves(run: Run) -> str:
    """Loss terms, accuracy, momentum, temperatures and learning rate."""
    terms = {name: name.removeprefix("train/") for name in run.series if name.startswith("train/")}
    warmth = {
        name: name.removeprefix("temperature/").replace("_temperature", "").replace("_", " ")
        for name in run.series
        if name.startswith("temperature/")
    }
    loss = Chart(
        "Training loss",
        "loss",
        dict(sorted(terms.items(), key=lambda term: term[1] != "loss")),
        "Rates no run on its own: targets move, and a collapse lowers it too.",
    )
    temperatures = Chart(
        "Temperatures",
        "temperature τ",
        dict(sorted(warmth.items(), key=lambda one: one[1] != "student")),
        "Lower is sharper; a teacher has to be sharper than its student.",
    )
    accuracy, momentum, rate = _CURVES
    return _drawn(run, (loss, accuracy, momentum, temperatures, rate))


def geometry(run: Run) -> str:
    """Of features and answers, with every alarm where it fell."""
    way = plane(run.series.get("monitor/alignment", []), run.series.get("monitor/uniformity", []))
    return _drawn(run, _GEOMETRY, run.alarms, way)


def teacher(run: Run) -> str:
    """Age, distance and agreement, with the alarms that concern the teacher."""
    return _drawn(run, _TEACHER, [alarm for alarm in run.alarms if alarm["kind"].startswith("teacher")])


def _drawn(run: Run, charts: Iterable[Chart], alarms: Sequence[Mapping[str, Any]] = (), more: str = "") -> str:
    marks = [Mark(alarm["step"], kind_named(alarm["kind"]), alarm["line"]) for alarm in alarms]
    drawn = ""
    for chart in charts:
        lines = {label: run.series[name] for name, label in chart.lines.items() if name in run.series}
        if lines:
            drawn += line_chart(chart.title, chart.unit, lines, marks, chart.look)
    drawn += more
    return f"<div class=charts>{drawn}</div>" if drawn else ""
