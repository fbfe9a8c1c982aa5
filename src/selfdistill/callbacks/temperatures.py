"""The temperatures of a run, as curves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from torch import nn

from selfdistill.schedules import ConstantSchedule, Schedule


class TemperatureLog(L.Callback):
    """Logs ``temperature/…``: each schedule that is named a temperature, of the module, its divergence and objectives.

    A module without a clock or without such schedules logs nothing. Written on the steps on
    which the Trainer writes its own.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        clock, step, every = getattr(pl_module, "clock", None), trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        # a step is written once, however many micro-batches it has
        if clock is None or not every or step % every or batch_idx % trainer.accumulate_grad_batches:
            return
        values = {f"temperature/{name}": schedule(clock) for name, schedule in temperatures(pl_module)}
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, step=step)


def temperatures(module: nn.Module) -> Iterator[tuple[str, Schedule]]:
    """Every temperature in ``module`` but those that stay 1, by its name with the path of its part."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name.endswith("temperature") and isinstance(value, Schedule) and value != ConstantSchedule(1.0):
                yield f"{path}.{name}".lstrip("."), value
