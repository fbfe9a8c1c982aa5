"""The page itself: sections in reading order, each left out where the run has nothing for it."""

from __future__ import annotations

from html import escape

from selfdistill.report.configuration import configuration, origin
from selfdistill.report.cost import cost
from selfdistill.report.curves import curves, geometry, teacher
from selfdistill.report.panels import attention, left_out, map_of_images, neighbours, views
from selfdistill.report.read import Run
from selfdistill.report.style import STYLE
from selfdistill.report.tables import section
from selfdistill.report.verdict import figures, verdict

_POSTS = "Orange posts: an alarm of the collapse monitor, at the step where it fell."


def page(run: Run) -> str:
    """The whole HTML document; it fetches nothing."""
    method = str(run.summary.get("method") or "run")
    shown = run.pictures
    body = [
        f"<h1>{escape(method)} <small>{escape(run.name)}</small></h1>",
        verdict(run),
        _facts(run),
        section("Figures", figures(run), "The trained row has to beat the other two, which cost nothing."),
        section("Curves", curves(run)),
        section("Geometry", geometry(run), _POSTS if run.alarms else ""),
        section("Teacher", teacher(run)),
        section("Views and masks", views(shown)),
        section("Nearest neighbours", neighbours(shown)),
        section("Embedding map", map_of_images(shown)),
        section("Attention", attention(shown)),
        left_out(shown),
        section("Cost", cost(run.summary)),
        section("Configuration", configuration(run.config, run.defaults)),
        section("Versions", origin(run.provenance)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(method)} – {escape(run.name)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _facts(run: Run) -> str:
    source = run.config.get("data", {}).get("source", {}).get("_target_", "")
    facts = {
        "method": run.summary.get("method"),
        "data": str(source).rpartition(".")[2],
        "backbone": run.config.get("backbone", {}).get("name"),
        "evaluated network": run.summary.get("evaluates"),
        "seed": run.config.get("seed"),
    }
    known = " · ".join(f"{name}: {escape(str(value))}" for name, value in facts.items() if value not in (None, ""))
    return f"<p class=facts>{known}</p>"
