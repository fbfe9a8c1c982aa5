"""The metrics of the step after which a checkpoint was written."""

from __future__ import annotations

from typing import Any

import lightning as L

KEY = "logged_later"


class History(L.Callback):
    """Brings to the loggers what was logged before a checkpoint, and stores in it what Lightning logs right after it.

    The run that continues logs the latter. The metrics of a step reach the loggers behind the hooks in which
    checkpoints are written, so that a run stopped there has never logged them, and the one that continues begins with
    the next step.
    """

    def __init__(self) -> None:
        self._later: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            logger.save()
        # Lightning says in no public place what it is about to log
        loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
        progress: Any = loop.batch_progress.current
        within_batch_end = progress.processed > progress.completed
        if within_batch_end and connector.should_update_logs:
            values = {name: float(value) for name, value in connector.metrics["log"].items()}
            checkpoint[KEY] = {"step": loop._batches_that_stepped, "epoch": trainer.current_epoch, "values": values}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._later = checkpoint.get(KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._later is not None and self._later["values"]:
            for logger in trainer.loggers:
                logger.log_metrics(self._later["values"] | {"epoch": self._later["epoch"]}, step=self._later["step"])
        self._later = None
