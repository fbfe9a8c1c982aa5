"""The page of a sweep: the best run, all runs, what mattered, their curves, and what did not run and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from selfdistill.report.effects import levels, main_effects
from selfdistill.report.overlay import STYLE as OVERLAY_STYLE
from selfdistill.report.overlay import Curve, legend, overlay_chart, parallel_coordinates
from selfdistill.report.style import STYLE
from selfdistill.report.sweep import Job, Sweep, over_seeds, rounded, said_settings, said_std
from selfdistill.report.tables import cells, section, table

_CURVES = (
    ("Training loss", "loss", "train/loss"),
    ("Validation k-NN", "share correct", "val/knn"),
    ("Effective rank of the features", "directions", "monitor/rank"),
    ("Spread of the features", "std × √dimension", "monitor/std"),
)
# with two, any key that differs explains everything
_LEAST_RUNS = 3
_STATES = ("finished", "refused", "failed", "interrupted", "waiting")


def comparison(sweep: Sweep) -> str:
    """The whole HTML document; it fetches nothing."""
    ranked = sweep.ranked
    counts = {status: sum(job.status == status for job in sweep.jobs) for status in _STATES}
    missing = (sweep.total or 0) - len(sweep.jobs)
    counts["waiting"] += max(0, missing)
    said = " · ".join(f"{count} {status}" for status, count in counts.items() if count)
    colours, groups = _groups(sweep)
    body = [
        f"<h1>Sweep <small>{escape(sweep.name)}</small></h1>",
        _best(sweep),
        f"<p class=facts>{said}</p><p class=facts><code>{escape(sweep.command)}</code></p>",
        section("Over seeds", _seeds(sweep)),
        section("Runs", _runs(sweep)),
        section("What mattered", _effects(sweep)),
        section("Settings and figure", _coordinates(sweep, colours, groups) if len(ranked) > 1 else ""),
        section("Curves", _curves(sweep, colours, groups)),
        section("Not finished", _unfinished(sweep)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Sweep – {escape(sweep.name)}</title><style>{STYLE}{OVERLAY_STYLE}code {{ overflow-wrap: anywhere; }}"
        f"</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )


def _best(sweep: Sweep) -> str:
    ranked = sweep.ranked
    if not ranked:
        return '<p class="verdict bad">No job has a figure.</p>'
    best = ranked[0]
    test = (best.summary.get("figures") or {}).get("trained", {}).get("knn")
    tested = "" if test is None else f", {test:.4f} on the test split"
    collapse = best.summary.get("collapse")
    bad = " bad" if collapse else ""
    warned = f"; but its monitor says: {collapse}" if collapse else ""
    ties = sum(job.objective == best.objective for job in ranked) - 1
    tied = f", as {ties} other{'s' * (ties > 1)}" if ties else ""
    said = f"Best run: {best.label} ({best.run}), validation k-NN {best.objective:.4f}{tied}{tested}{warned}."
    top = over_seeds(sweep)[0]
    if len(top.settings) and len(top.values) > 1 and "seed" in sweep.swept:
        named = said_settings(top.settings)
        said += f" Best over seeds: {named}, {top.mean:.4f} {said_std(top)}."
    return f'<p class="verdict{bad}">{escape(said)}</p>'


def _seeds(sweep: Sweep) -> str:
    groups = over_seeds(sweep)
    if "seed" not in sweep.swept or not any(len(group.values) > 1 for group in groups):
        return ""
    keys = [key for key in sweep.swept if key != "seed"]
    rows = [
        [
            said_settings(group.settings) or "all",
            f"{group.mean:.4f} {said_std(group)}",
            f"{min(group.values):.4f}",
            f"{max(group.values):.4f}",
            str(len(group.values)),
        ]
        for group in groups
    ]
    facts = "<p class=facts>validation k-NN, mean ± sample standard deviation over the seeds that finished</p>"
    return _tight([", ".join(keys), "mean ± std", "lowest", "highest", "seeds"], rows) + facts


def _runs(sweep: Sweep) -> str:
    finished = [*sweep.ranked, *(job for job in sweep.jobs if job.status == "finished" and job.objective is None)]
    rows = [
        [
            str(job.run),
            "–" if job.objective is None else f"{job.objective:.4f}",
            *(rounded(job.settings.get(key, "")) for key in sweep.swept),
            *_figures(job),
            job.summary.get("collapse") or "none seen",
            f"{job.summary.get('seconds', {}).get('train', 0):,.0f}",
        ]
        for job in finished
    ]
    heads = ["run", "validation k-NN", *sweep.swept, "test k-NN", "raw pixels", "collapse", "seconds"]
    return _tight(heads, rows) if rows else ""


def _figures(job: Job) -> tuple[str, str]:
    figures = job.summary.get("figures") or {}
    trained, pixels = (figures.get(row, {}).get("knn") for row in ("trained", "raw_pixels"))
    return ("–" if trained is None else f"{trained:.4f}"), ("–" if pixels is None else f"{pixels:.4f}")


def _effects(sweep: Sweep) -> str:
    if sweep.swept and (told := len(sweep.ranked)) < _LEAST_RUNS:
        return f"<p class=facts>Not told: it takes {_LEAST_RUNS} runs with a figure or more, here are {told}.</p>"
    effects = main_effects(sweep)
    if not effects:
        return ""
    rows = [
        [
            escape(effect.key),
            f'<span class=bar style="width:{80 * effect.share:.0f}px"></span> {effect.share:.0%}',
            f"{effect.chance:.0%}",
            *(f"{escape(name)}: {mean:.4f} ({count})" for name, mean, count in (effect.groups[0], effect.groups[-1])),
        ]
        for effect in effects
    ]
    facts = (
        "<p class=facts>Share of the variance of validation k-NN over the runs that the key's own values explain (main "
        "effect, η²); what keys do only together is in none of them. “By chance” is what a key without effect would "
        "show on average with as many values and runs: a share near it says nothing. Where cells of the grid are "
        "missing, keys share their effects. Many numbers count as four ranges.</p>"
    )
    heads = ["key", "explained", "by chance", "best value: mean (runs)", "worst value"]
    return f"<div class=tight>{cells(heads, rows)}</div>{facts}"


def _groups(sweep: Sweep) -> tuple[dict[int, int], str]:
    """A colour for each job by the values of the first key that is not the seed, and their legend."""
    key = next((key for key in sweep.swept if key != "seed"), next(iter(sweep.swept), None))
    if key is None:
        return {job.number: 0 for job in sweep.jobs}, ""
    drawn = [job for job in sweep.jobs if job.series or job.objective is not None]
    names = levels([job.settings.get(key, "") for job in drawn])
    order = list(dict.fromkeys(names))
    colours = {job.number: order.index(name) for job, name in zip(drawn, names, strict=True)}
    return colours, f"{legend(order)}<p class=facts>colour: {escape(key)}; thick: the best run</p>"


def _coordinates(sweep: Sweep, colours: dict[int, int], groups: str) -> str:
    ranked = sweep.ranked
    return parallel_coordinates(sweep.swept, ranked, [colours[job.number] for job in ranked]) + groups


def _curves(sweep: Sweep, colours: dict[int, int], groups: str) -> str:
    best = sweep.ranked[0].number if sweep.ranked else None
    drawn = ""
    for title, unit, name in _CURVES:
        curves = [
            Curve(job.label, colours[job.number], job.series[name], job.number == best)
            for job in sweep.jobs
            if job.series.get(name)
        ]
        if curves:
            drawn += overlay_chart(title, unit, curves)
    return f"<div class=charts>{drawn}</div>{groups}" if drawn else ""


def _unfinished(sweep: Sweep) -> str:
    rows = [[job.label, job.status, job.line] for job in sweep.jobs if job.status != "finished"]
    return f"<div class=loose>{table(['job', 'status', 'why'], rows)}</div>" if rows else ""


def _tight(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells do not break lines; it scrolls where it is too wide."""
    return f"<div class=tight>{table(heads, rows)}</div>"
