"""What a run leaves to look at when it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger

from selfdistill.callbacks import CollapseError, CollapseMonitor
from selfdistill.data import DataModule
from selfdistill.files import write_text
from selfdistill.methods import SelfDistillModule
from selfdistill.methods.finite import NonFiniteLossError
from selfdistill.report import write_report
from selfdistill.report.page import page
from selfdistill.report.pictures import make_pictures
from selfdistill.report.read import read_run
from selfdistill.report.wandb_panels import log_panels


def report_of_a_stop(trainer: L.Trainer, folder: Path, error: BaseException) -> None:
    """Write the page of a run that ``error`` ends, which says why; what fails here hides no error.

    A run that was refused at its first step leaves no folder, and so no page.
    """
    if trainer.global_step == 0 and not isinstance(error, NonFiniteLossError | CollapseError):
        return
    with contextlib.suppress(Exception):
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        alarms = [asdict(a) for c in callbacks if isinstance(c, CollapseMonitor) for a in c.alarms]
        said = " ".join(str(error).split()) or type(error).__name__
        write_text(folder / "report.html", page(read_run(folder, alarms=alarms, stopped=said)))


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
