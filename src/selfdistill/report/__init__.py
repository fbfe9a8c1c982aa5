"""A run as one page to look at: ``python -m src.report run=<folder>``, and at the end of every run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from selfdistill.config import UserError, resolved
from selfdistill.files import write_text
from selfdistill.report.page import page
from selfdistill.report.read import read_run

__all__ = ["report", "write_report"]


def write_report(folder: Path) -> Path:
    """Make ``report.html`` in a run's folder from the files there; an older one is replaced.

    Raises:
        UserError: ``folder`` holds no run, or cannot be written.
    """
    file = folder / "report.html"
    text = page(read_run(folder))
    try:
        write_text(file, text)
    except OSError as error:
        raise UserError(f"run: {file} cannot be written ({error.strerror}); copy the run to another folder") from None
    return file


def report(config: DictConfig) -> None:
    """Write the page of the run in ``config.run``.

    Raises:
        UserError: there is no run.
    """
    print(f"written: {write_report(Path(str(resolved(config)['run'])))}")
