"""What a person sees while a run goes on: a bar in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

SHOWN = {
    "train/loss": "loss",
    "teacher/momentum": "momentum",
    "monitor/rank": "rank",
    "val/knn": "k-NN",
    "val/probe": "probe",
}


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with loss, momentum, rank, k-NN and probe under short names."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        return {short: metrics[name] for name, short in SHOWN.items() if name in metrics}


class EpochLines(L.Callback):
    """One line each so many epochs, at most ``lines`` in all: readable in a log file or a pipe.

    Args:
        lines: most lines printed in a run.
    """

    def __init__(self, lines: int = 20) -> None:
        if lines < 1:
            raise ValueError(f"EpochLines.lines: {lines} given, allowed is 1 or more")
        self.lines = lines
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.max_epochs or -1
        epoch = trainer.current_epoch + 1
        if epoch % max(1, -(-last // self.lines)) and epoch not in (1, last):
            return
        metrics = trainer.callback_metrics
        shown = "  ".join(f"{s} {_short(metrics[n])}" for n, s in SHOWN.items() if n in metrics)
        of = f"/{last}" if last > 0 else ""
        print(f"epoch {epoch:>3}{of}  {shown}  {time.monotonic() - self._started:.0f} s", flush=True)


def _short(value: Any) -> str:
    return f"{float(value):.4g}"
