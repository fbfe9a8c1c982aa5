"""The page's panels as images and tables of a Weights & Biases run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from selfdistill.report.verdict import figure_rows


def log_panels(loggers: Iterable[Logger], folder: Path) -> None:
    """Log what lies in the run's ``folder`` to each wandb logger; offline runs store it until they are synchronised.

    The sheets of pictures become images, the figures and the embedding map tables, ``report.html`` is logged whole.

    Args:
        loggers: of the trainer; others than wandb's are passed over.
        folder: of a run that has ended.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.log(_panels(folder))


def _panels(folder: Path) -> dict[str, Any]:
    import wandb

    found: dict[str, Any] = {}
    file = folder / "pictures" / "panels.json"
    panels = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, panel in panels.items():
        if "sheet" in panel:
            caption = ", ".join(panel.get("titles", [])).replace("\n", " ")
            found[f"report/{name}"] = wandb.Image(str(file.with_name(panel["sheet"])), caption=caption or None)
    if embedding := panels.get("embedding"):
        maps = [embedding[name] for name in ("pca", "tsne") if embedding[name]]
        columns = [f"{name}_{axis}" for name in ("pca", "tsne") if embedding[name] for axis in "xy"]
        rows = zip(embedding["classes"], *maps, strict=True)
        data = [[label, *(value for point in points for value in point)] for label, *points in rows]
        found["report/embedding"] = wandb.Table(columns=["class", *columns], data=data)
    heads, figures = figure_rows(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    if figures:
        found["report/figures"] = wandb.Table(columns=["representation", *heads[1:]], data=figures)
    found["report/page"] = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
    return found
