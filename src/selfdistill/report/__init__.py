"""A run as one page to look at: ``python -m src.report run=<folder>``, and at the end of every run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from selfdistill.config import UserError, resolved
from selfdistill.files import write_text
from selfdistill.report.sweep import is_sweep, read_sweep

__all__ = ["report", "write_report"]


def write_report(folder: Path) -> Path:
    """Make ``report.html`` of a run, or ``comparison.html`` of a sweep, in its folder; an older one is replaced.

    Raises:
        UserError: ``folder`` holds no run, or cannot be written.
    """
    # late: what reads the record of a sweep only waits for nothing that the pages need
    from selfdistill.report.comparison import comparison
    from selfdistill.report.page import page
    from selfdistill.report.read import read_run

    of_sweep = is_sweep(folder)
    file = folder / ("comparison.html" if of_sweep else "report.html")
    text = comparison(read_sweep(folder)) if of_sweep else page(read_run(folder))
    try:
        write_text(file, text)
    except OSError as error:
        raise UserError(f"run: {file} cannot be written ({error.strerror}); copy the run to another folder") from None
    return file


def report(config: DictConfig) -> None:
    """Write the page of the run, or of the sweep, in ``config.run``.

    Raises:
        UserError: there is no run.
    """
    print(f"written: {write_report(Path(str(resolved(config)['run'])))}")
