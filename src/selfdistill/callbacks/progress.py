"""What a person sees while a run goes on: a bar in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

from selfdistill.callbacks.collapse_monitor import CollapseMonitor
from selfdistill.callbacks.online_evaluation import OnlineKNN
from selfdistill.callbacks.online_probe import OnlineProbe
from selfdistill.text_table import duration

SHOWN = {
    "train/loss": "loss",
    "teacher/momentum": "momentum",
    "monitor/rank": "rank",
    "val/knn": "k-NN",
    "val/probe": "probe",
}


# Not measured in every epoch; Lightning keeps the last value.
_MEASURED_BY: dict[str, type[CollapseMonitor | OnlineKNN | OnlineProbe]] = {
    "monitor/rank": CollapseMonitor,
    "val/knn": OnlineKNN,
    "val/probe": OnlineProbe,
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

    A figure that was measured before this epoch says at which step.

    Args:
        lines: most lines printed in a run.
    """

    def __init__(self, lines: int = 20) -> None:
        if lines < 1:
            raise ValueError(f"EpochLines.lines: {lines} given, allowed is 1 or more")
        self.lines = lines
        self._started = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()
        # continued within an epoch, Lightning does not start it again
        self._first_step = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = trainer.global_step

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.max_epochs or -1
        epoch = trainer.current_epoch + 1
        if epoch % max(1, -(-last // self.lines)) and epoch not in (1, last):
            return
        metrics = trainer.callback_metrics
        shown = "  ".join(
            f"{s} {_short(metrics[n])}{self._earlier(n, trainer)}" for n, s in SHOWN.items() if n in metrics
        )
        of = f"/{last}" if last > 0 else ""
        print(f"epoch {epoch:>3}{of}  {shown}  {duration(round(time.monotonic() - self._started))}", flush=True)

    def _earlier(self, name: str, trainer: L.Trainer) -> str:
        """``" (step 80)"`` where the figure is of an earlier epoch; empty where it is of this one."""
        # Lightning sets the attribute without declaring it.
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        steps = [c.measured_at for c in callbacks if name in _MEASURED_BY and isinstance(c, _MEASURED_BY[name])]
        return f" (step {steps[0]})" if steps and steps[0] < self._first_step else ""


def _short(value: Any) -> str:
    return f"{float(value):.4g}"
