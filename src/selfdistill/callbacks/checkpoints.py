"""When checkpoints are written: the last state, between two optimizer steps only, and the best one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from selfdistill.checkpoint_io import LAST


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after epochs and, if asked, within them; and at the end of the training.

    Within an epoch it waits for the boundary of an optimizer step, after the teacher's update and the commit of center
    and queue: a checkpoint from the middle of an accumulation would lose the gradients so far. After an epoch it comes
    behind the validation and ``best.ckpt``, so that it knows their figures.

    Args:
        folder: of the checkpoints.
        every_n_epochs: save each so many epochs; None never.
        every_n_train_steps: save each so many optimizer steps, too; None never. The epoch's last step is left to the
            end of the epoch.

    Attributes:
        saved_step: the optimizer step that was saved last; None before.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(
        self, folder: str | Path, every_n_epochs: int | None = 1, every_n_train_steps: int | None = None
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps)):
            if value is not None and value < 1:
                raise ValueError(f"LastCheckpoint.{name}: {value} given, allowed is 1 or more, or null")
        self.path = Path(folder) / LAST
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self.saved_step: int | None = None
        self._global_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_boundary = trainer.global_step != self._global_step
        self._global_step = trainer.global_step
        # Continued from the last batch of an epoch, Lightning would leave out what ends it.
        if self.every_n_train_steps is None or not at_boundary or trainer.is_last_batch:
            return
        if trainer.global_step % self.every_n_train_steps == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs is not None and epoch % self.every_n_epochs == 0
        ends = epoch == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step or trainer.should_stop
        if due or ends:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for one file, whose best score a run in another folder takes over.

    Lightning forgets the score where the folder differs, and the continued run's ``best.ckpt`` would be the best since
    then. Here the score goes with the file: :mod:`selfdistill.resume` brings it along.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        assert self.filename is not None
        here = os.path.join(self.dirpath, f"{self.filename}{self.FILE_EXTENSION}")
        if not os.path.isfile(here) or not state_dict["best_k_models"]:
            return
        score = state_dict["best_model_score"]
        super().load_state_dict(
            state_dict
            | {
                "dirpath": self.dirpath,
                "best_model_path": here,
                "kth_best_model_path": here,
                "best_k_models": {here: score},
                "last_model_path": "",
            }
        )
        self.current_score = state_dict["current_score"]
