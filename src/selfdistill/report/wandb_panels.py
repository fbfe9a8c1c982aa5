"""The page's panels as images and tables of a Weights & Biases run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from selfdistill.report.configuration import DIFFERENCE_HEADS, differences
from selfdistill.report.cost import cost_rows
from selfdistill.report.read import Run, read_run
from selfdistill.report.tables import plain
from selfdistill.report.verdict import figure_rows, kind_named, verdict

_Table = tuple[list[str], list[list[Any]]]
"""Heads and rows."""


def log_panels(loggers: Iterable[Logger], folder: Path) -> None:
    """Log what lies in the run's ``folder`` to each wandb logger; offline runs store it until they are synchronised.

    The sheets of pictures become images; the verdict with the alarms, figures, embedding map, cost and what differs
    from the method's default configuration tables; ``report.html`` is logged whole. What the run has nothing for is
    left out.

    Args:
        loggers: of the trainer; others than wandb's are passed over.
        folder: of a run that has ended.

    Raises:
        UserError: ``folder`` holds no run, or one of its files is damaged.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.log(_panels(folder))


def _panels(folder: Path) -> dict[str, Any]:
    import wandb

    run = read_run(folder)
    found: dict[str, Any] = {}
    for name, panel in run.pictures.panels.items():
        if "sheet" in panel:
            sheet = str(folder / "pictures" / panel["sheet"])
            found[f"report/{name}"] = wandb.Image(sheet, caption=_caption(panel) or None)
    for name, (heads, rows) in _tables(run).items():
        if rows:
            found[f"report/{name}"] = wandb.Table(columns=heads, data=rows)
    found["report/page"] = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
    return found


def _tables(run: Run) -> dict[str, _Table]:
    heads, figures = figure_rows(run.summary)
    costs = [[of, plain(name), plain(value)] for of, rows in cost_rows(run.summary).items() for name, value in rows]
    differing = [] if run.defaults is None else differences(run.config, run.defaults)
    return {
        "verdict": _verdict(run),
        "figures": (["representation", *heads[1:]], figures),
        "embedding": _embedding(run.pictures.panels.get("embedding")),
        "cost": (["of", "part", "value"], costs),
        "differences": (DIFFERENCE_HEADS, differing),
    }


def _verdict(run: Run) -> _Table:
    """The page's first sentence, then each alarm and each rollback."""
    sentence = plain(verdict(run).partition("</p>")[0])
    alarms = [[kind_named(alarm["kind"]), alarm["step"], alarm["since"], alarm["line"]] for alarm in run.alarms]
    mends = [["rolled back", None, None, line] for line in run.summary.get("mends") or []]
    return ["what", "step", "since step", "said"], [["verdict", None, None, sentence], *alarms, *mends]


def _embedding(panel: Mapping[str, Any] | None) -> _Table:
    """A row for each test image: its class and its place on each map."""
    if not panel:
        return [], []
    names = [name for name in ("pca", "tsne") if panel[name]]
    rows = zip(panel["classes"], *(panel[name] for name in names), strict=True)
    data = [[label, *(value for point in points for value in point)] for label, *points in rows]
    return ["class", *(f"{name}_{axis}" for name in names for axis in "xy")], data


def _caption(panel: Mapping[str, Any]) -> str:
    """What the columns of a sheet are, or, of neighbours, what each row shows."""
    if "similarity" not in panel:
        return ", ".join(panel.get("titles", [])).replace("\n", " ")
    rows = zip(panel["labels"], panel["similarity"], strict=True)
    said = "; ".join(_neighbours(labels, similarity) for labels, similarity in rows)
    return f"each row: a test image, then its nearest training images (cosine): {said}"


def _neighbours(labels: list[int], similarity: list[float]) -> str:
    """``class 4: 4 right (0.98), 7 wrong (0.91)``."""
    asked, *found = labels
    told = [
        f"{label} {'right' if label == asked else 'wrong'} ({cosine:.2f})"
        for label, cosine in zip(found, similarity, strict=True)
    ]
    return f"class {asked}: {', '.join(told)}"
