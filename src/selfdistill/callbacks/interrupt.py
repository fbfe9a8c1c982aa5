"""Ctrl-C and SIGTERM end a run between two optimizer steps, with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L


class TrainingInterrupted(Exception):
    """The run was stopped by a signal; ``checkpoint`` continues it (None: it was stopped at once)."""

    def __init__(self, signal_number: int, checkpoint: Path | None) -> None:
        name = signal.Signals(signal_number).name
        then = "in the middle of a step" if checkpoint is None else f"; {checkpoint} continues it"
        super().__init__(f"stopped by {name} {then}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class GracefulInterrupt(L.Callback):
    """Waits for the end of the optimizer step, saves ``last.ckpt``, stops. A second signal stops at once.

    A checkpoint from the middle of a step (student moved, teacher not; gradients half accumulated)
    would not continue the same run; between two steps it does.

    Args:
        checkpoint: the file that is written.
        agree_every: optimizer steps after which several processes ask each other, which costs a reduction.
    """

    def __init__(self, checkpoint: str | Path, agree_every: int = 10) -> None:
        if agree_every < 1:
            raise ValueError(f"GracefulInterrupt.agree_every: {agree_every} given, allowed is 1 or more")
        self.checkpoint = Path(checkpoint)
        self.agree_every = agree_every
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._global_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._received = None
        self._global_step = trainer.global_step
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_boundary = trainer.global_step != self._global_step
        self._global_step = trainer.global_step
        # Continued from the last batch of an epoch, Lightning would leave out what ends it.
        if at_boundary and not trainer.is_last_batch:
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if self._agreed(trainer):
            trainer.save_checkpoint(self.checkpoint)
            raise TrainingInterrupted(self._received or signal.SIGTERM, self.checkpoint)

    def _agreed(self, trainer: L.Trainer) -> bool:
        """Whether any process was asked: signals reach processes at different steps, or one of them only."""
        if trainer.world_size == 1:
            return self._received is not None
        if trainer.global_step % self.agree_every and not trainer.is_last_batch:
            return False
        return trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._restore()
            raise TrainingInterrupted(number, None)
        self._received = number
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
