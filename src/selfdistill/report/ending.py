"""What a run leaves to look at when it has ended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from selfdistill.data import DataModule
from selfdistill.methods import SelfDistillModule
from selfdistill.report import write_report
from selfdistill.report.pictures import make_pictures
from selfdistill.report.wandb_panels import log_panels


def last_report(
    module: SelfDistillModule[Any, Any], datamodule: DataModule, folder: Path, loggers: Iterable[Logger]
) -> str:
    """Store the pictures, write the page, and log both where a logger takes them.

    What fails here fails no run: its figures and its backbone are there already.

    Args:
        module: trained, not sharded: one process calls this.
        datamodule: its data.
        folder: of the run, with ``summary.json``.
        loggers: of the trainer.

    Returns:
        Where the page is, or why something of it is not.
    """
    try:
        make_pictures(module, datamodule, folder)
        page = write_report(folder)
        log_panels(loggers, folder)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return f"warning: not whole ({said}); python -m src.report run={folder} writes the page again"
    return str(page)
