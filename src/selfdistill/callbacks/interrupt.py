"""Ctrl-C, SIGTERM and SLURM's warning end a run between two optimizer steps, with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint

from selfdistill.callbacks.checkpoints import LastCheckpoint
from selfdistill.callbacks.requeue import requeue


class TrainingInterrupted(Exception):
    """The run was stopped by a signal; ``checkpoint`` continues it (None: there is none).

    Args:
        signal_number: the signal.
        checkpoint: the newest one.
        note: what else was done.
    """

    def __init__(self, signal_number: int, checkpoint: Path | None, note: str = "") -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}{note}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class GracefulInterrupt(Checkpoint):
    """Waits for the end of the optimizer step, saves ``last.ckpt``, stops. A second signal stops at once.

    A checkpoint from the middle of a step (student moved, teacher not; gradients half accumulated)
    would not continue the same run; between two steps it does.

    Under SLURM it takes the place of Lightning's handler, which writes wherever the step is: the signal that announces
    the end of the time (``#SBATCH --signal=USR1@90``) saves in the same way, and then asks ``scontrol`` to requeue the
    job, where Lightning would. SIGTERM asks for nothing: a pre-empted job is requeued by SLURM, a cancelled one is not
    to come back.

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
        self._requeue_signal: int | None = None
        self._global_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._received = None
        self._global_step = trainer.global_step
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_signal = environment.requeue_signal
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, self._requeue_signal):
            if number is not None:
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
        if not self._agreed(trainer):
            return
        if not self._has_saved(trainer):
            trainer.save_checkpoint(self.checkpoint)
        asked = self._requeue_signal is not None and self._received == self._requeue_signal
        note = ""
        if trainer.strategy.reduce_boolean_decision(asked, all=False) and trainer.is_global_zero:
            note = f", {requeue()}"
        raise TrainingInterrupted(self._received or signal.SIGTERM, self._newest(), note)

    def _has_saved(self, trainer: L.Trainer) -> bool:
        """Whether this state is in the file already: again, it would be the checkpoint before as well."""
        last = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
        return any((each.path, each.saved_step) == (self.checkpoint, trainer.global_step) for each in last)

    def _newest(self) -> Path | None:
        """The checkpoint, which may be an earlier one where the disk is full."""
        return self.checkpoint if self.checkpoint.exists() else None

    def _agreed(self, trainer: L.Trainer) -> bool:
        """Whether any process was asked: signals reach processes at different steps, or one of them only."""
        if trainer.world_size == 1:
            return self._received is not None
        if trainer.global_step % self.agree_every and not trainer.is_last_batch:
            return False
        return trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # not in teardown: by then Lightning has restored what stood there before its own handlers
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._restore()
            raise TrainingInterrupted(number, self._newest(), " in the middle of a step")
        self._received = number
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
