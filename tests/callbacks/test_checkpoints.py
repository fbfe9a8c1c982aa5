"""When ``last.ckpt`` is written: between optimizer steps, at the end of epochs, at the end of the training."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from trainers import bare_trainer

from selfdistill.callbacks import GracefulInterrupt, LastCheckpoint, TrainingInterrupted
from selfdistill.checkpoint_io import AtomicCheckpointIO

PER_EPOCH = 7  # micro-batches: three steps of two and one of one


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Seen(L.Callback):
    """(optimizer steps, micro-batches begun) at each save."""

    def __init__(self) -> None:
        self.saves: list[tuple[int, int]] = []

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Any) -> None:
        self.saves.append((trainer.global_step, trainer.fit_loop.total_batch_idx + 1))


class Dies(L.Callback):
    """In the second micro-batch of the sixth step."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_step, batch_idx % 2) == (5, 1):
            raise RuntimeError("dies")


def saves(
    callback: LastCheckpoint,
    ckpt_path: Path | None = None,
    dies: bool = False,
    also: Sequence[L.Callback] = (),
    **settings: Any,
) -> list[tuple[int, int]]:
    seen = Seen()
    callbacks = (seen, callback, *([Dies()] if dies else []), *also)
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "enable_checkpointing": True, **settings}
    trainer = bare_trainer(callback.path.parent, *callbacks, **settings)
    loader = DataLoader(TensorDataset(torch.ones(PER_EPOCH, 2)))
    trainer.fit(Tiny(), loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return seen.saves


def test_after_epochs(tmp_path: Path) -> None:
    assert saves(LastCheckpoint(tmp_path)) == [(4, 7), (8, 14)]


def test_at_the_end_whatever_was_asked_for(tmp_path: Path) -> None:
    assert saves(LastCheckpoint(tmp_path, every_n_epochs=2), max_epochs=3) == [(8, 14), (12, 21)]
    assert saves(LastCheckpoint(tmp_path, every_n_epochs=None)) == [(8, 14)]
    assert saves(LastCheckpoint(tmp_path, every_n_epochs=None), max_epochs=-1, max_steps=6) == [(6, 11)]


def test_within_epochs_between_two_steps(tmp_path: Path) -> None:
    expected = [(1, 2), (2, 4), (3, 6), (4, 7), (5, 9), (6, 11), (7, 13), (8, 14)]
    assert saves(LastCheckpoint(tmp_path, every_n_train_steps=1)) == expected
    assert saves(LastCheckpoint(tmp_path, every_n_train_steps=3)) == [(3, 6), (4, 7), (6, 11), (8, 14)]


def test_never_within_an_accumulation_when_continued(tmp_path: Path) -> None:
    """Right behind a checkpoint, Lightning's own callback would save at the first micro-batch."""
    with pytest.raises(RuntimeError, match="dies"):
        saves(LastCheckpoint(tmp_path, every_n_train_steps=1), dies=True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    assert saves(LastCheckpoint(tmp_path, every_n_train_steps=1), tmp_path / "last.ckpt") == [(6, 11), (7, 13), (8, 14)]


class Asked(L.Callback):
    """To end, at the end of the second epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGTERM)


def test_asked_to_end_behind_a_save_the_one_before_stays(tmp_path: Path) -> None:
    stop = GracefulInterrupt(tmp_path / "last.ckpt")
    with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM"):
        saves(LastCheckpoint(tmp_path), also=(Asked(), stop), plugins=[AtomicCheckpointIO()], max_epochs=3)
    steps = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in ("last.ckpt", "previous.ckpt")]
    assert steps == [8, 4]


@pytest.mark.parametrize("asked", [False, True])
def test_signals_mean_afterwards_what_they_meant_before(asked: bool, tmp_path: Path) -> None:
    """SIGTERM ends a process that has trained, its figures' part too."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    also = (*([Asked()] if asked else []), GracefulInterrupt(tmp_path / "last.ckpt"))
    try:
        saves(LastCheckpoint(tmp_path), also=also, plugins=[AtomicCheckpointIO()], max_epochs=3)
    except TrainingInterrupted:
        assert asked
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_train_steps"])
def test_refuses_counts_below_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"LastCheckpoint.{name}: 0 given, allowed is 1 or more, or null"):
        LastCheckpoint(tmp_path, **{name: 0})
