"""When the teacher moves, in modules that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import bare_trainer

from selfdistill.schedules import LinearSchedule
from selfdistill.teacher import TeacherUpdate, make_teacher


class Foreign(L.LightningModule):
    """Somebody's module: two networks under their own names, plain SGD."""

    def __init__(self, inf_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.shadow = make_teacher(self.net)
        self.state = Recorder()
        self.inf_at = inf_at
        self.students: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        return loss * float("inf") if batch_idx == self.inf_at else loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def commit(self) -> None:
        self.calls.append("commit")

    def discard(self) -> None:
        self.calls.append("discard")


class Moves(L.Callback):
    """What the teacher and student were after each batch; stands after TeacherUpdate."""

    def __init__(self) -> None:
        self.teacher: list[Tensor] = []
        self.student: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.teacher.append(pl_module.shadow.weight.clone())
        self.student.append(pl_module.net.weight.detach().clone())


def data(batches: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(4 * batches, 3, generator=generator)), batch_size=4)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_one_exact_update_per_optimizer_step(tmp_path: Path, accumulate: int) -> None:
    """Seven batches: with accumulation the last window is ragged, and is a step all the same."""
    torch.manual_seed(0)
    module, moves = Foreign(), Moves()
    update = TeacherUpdate("net", "shadow", momentum=0.5)
    before = module.shadow.weight.clone()
    bare_trainer(tmp_path, update, moves, max_epochs=2, accumulate_grad_batches=accumulate).fit(module, data(7))
    windows = [(i % 7 + 1) % accumulate == 0 or i % 7 == 6 for i in range(14)]
    expected = before
    for i, stepped in enumerate(windows):
        if stepped:
            expected = 0.5 * expected + 0.5 * moves.student[i]
        torch.testing.assert_close(moves.teacher[i], expected, rtol=0, atol=1e-7)
    assert update.clock.step == sum(windows)
    assert update.clock.steps_per_epoch == -(-7 // accumulate)
    assert module.state.calls == ["commit"] * sum(windows)


def test_a_step_that_the_scaler_skips_moves_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, moves = Foreign(inf_at=1), Moves()
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))  # type: ignore[arg-type]
    update = TeacherUpdate("net", "shadow", momentum=0.5)
    bare_trainer(tmp_path, update, moves, max_epochs=1, plugins=[precision]).fit(module, data(3))
    assert not torch.equal(moves.teacher[0], moves.student[0])
    assert torch.equal(moves.teacher[0], moves.teacher[1])
    assert not torch.equal(moves.teacher[1], moves.teacher[2])
    assert update.clock.step == 2
    assert module.state.calls == ["commit", "discard", "commit"]


def test_validation_does_not_move_the_teacher(tmp_path: Path) -> None:
    module = Foreign()
    before = module.shadow.weight.clone()
    bare_trainer(tmp_path, TeacherUpdate("net", "shadow", momentum=0.5)).validate(module, data(2), verbose=False)
    assert torch.equal(module.shadow.weight, before)


def test_the_clock_counts_the_whole_run(tmp_path: Path) -> None:
    """The momentum is the schedule's value at each step, the last one one step before the end."""
    seen: list[float] = []

    class Read(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            assert update.momentum is not None
            seen.append(update.momentum)

    update = TeacherUpdate("net", "shadow", momentum=LinearSchedule(0.0, 1.0))
    bare_trainer(tmp_path, update, Read(), max_epochs=2, limit_train_batches=5).fit(Foreign(), data(9))
    assert seen == pytest.approx([k / 10 for k in range(10)])


def test_max_steps_alone_is_a_run_length(tmp_path: Path) -> None:
    update = TeacherUpdate("net", "shadow", momentum=0.9)
    bare_trainer(tmp_path, update, max_steps=5, max_epochs=-1).fit(Foreign(), data(3))
    assert (update.clock.step, update.clock.total_steps, update.clock.steps_per_epoch) == (5, 5, 3)


def test_a_missing_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no network 'nets'"):
        bare_trainer(tmp_path, TeacherUpdate("nets", "shadow", momentum=0.9), max_steps=1).fit(Foreign(), data(1))
    with pytest.raises(ValueError, match="has no teacher_policy"):
        bare_trainer(tmp_path, TeacherUpdate(), max_steps=1).fit(Foreign(), data(1))
