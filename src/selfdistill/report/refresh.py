"""The page while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from selfdistill.callbacks import CollapseMonitor
from selfdistill.data import DataModule
from selfdistill.files import write_text
from selfdistill.report.page import page
from selfdistill.report.pictures import make_views
from selfdistill.report.read import read_run


class RefreshReport(L.Callback):
    """Writes ``report.html`` again while the run goes on, so that a killed one has the last page.

    The first page brings the views that the networks see. A step and the end of an epoch are passed over where writing
    would take more than ``share`` of the time since the last page, told by what the last one took; a step that is
    passed over costs a look at the clock, and nothing waits for the device. The first process writes.

    Args:
        folder: of the run.
        share: most of the run's time that the pages may take.
        clock: seconds from any start.
    """

    def __init__(self, folder: Path, share: float = 0.01, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"RefreshReport.share: {share} given, allowed is above 0 and at most 1")
        self.folder = folder
        self.share = share
        self._clock = clock
        # the first page is dearer than it looks: assume this until one was timed
        self._took, self._last = 0.05, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = self._clock()

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._refresh(trainer)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._refresh(trainer)

    def _refresh(self, trainer: L.Trainer) -> None:
        started = self._clock()
        if self._took > self.share * (started - self._last):
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        monitor = next((c for c in trainer.callbacks if isinstance(c, CollapseMonitor)), None)  # type: ignore[attr-defined]
        alarms = [] if monitor is None else [asdict(alarm) for alarm in monitor.alarms]
        datamodule = getattr(trainer, "datamodule", None)
        try:
            if isinstance(datamodule, DataModule) and not (self.folder / "pictures").exists():
                make_views(datamodule, self.folder)
            write_text(self.folder / "report.html", page(read_run(self.folder, alarms=alarms)))
        except Exception as error:
            # the run is worth more than its page
            rank_zero_warn(f"report.html was not written ({' '.join(f'{type(error).__name__}: {error}'.split())})")
        self._last = self._clock()
        self._took = self._last - started
