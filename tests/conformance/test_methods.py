"""What every method must do, over conf/method/*.yaml: a new member needs no edit here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from selfdistill.assembly import build_data, build_method
from selfdistill.callbacks import RandomState
from selfdistill.config import CONF
from selfdistill.data import DataModule
from selfdistill.methods import SelfDistillModule
from selfdistill.teacher import TeacherUpdate
from selfdistill.views import Views

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))

pytestmark = pytest.mark.parametrize("method", METHODS)

Module = SelfDistillModule[Any, Any]


def build(config: DictConfig) -> tuple[Module, DataModule]:
    L.seed_everything(config.seed, verbose=False)
    return build_method(config), build_data(config)


def make_trainer(tmp_path: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[RandomState(), *callbacks],
        **settings,
    )


def fit(module: Module, datamodule: DataModule, trainer: L.Trainer, **settings: Any) -> None:
    trainer.fit(module, datamodule, **settings)


class Record(L.Callback):
    """The student before, and both networks after, every batch; the losses and the images' indices."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.index: list[Tensor] = []
        self.crops: list[Tensor] = []
        self.students: list[dict[str, Tensor]] = []
        self.teachers: list[dict[str, Tensor] | None] = []
        self.momenta: list[float | None] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Views, batch_idx: int
    ) -> None:
        update = next(c for c in trainer.callbacks if isinstance(c, TeacherUpdate))  # type: ignore[attr-defined]
        assert batch.index is not None
        self.losses.append(float(outputs["loss"]))
        self.index.append(batch.index)
        self.crops.append(batch.crops[0])
        self.students.append({n: p.detach().clone() for n, p in pl_module.student.named_parameters()})
        teacher = pl_module.teacher
        self.teachers.append(None if teacher is None else {n: p.clone() for n, p in teacher.named_parameters()})
        self.momenta.append(update.momentum)


def test_fits_two_steps(method: str, compose: Any, tmp_path: Path) -> None:
    module, datamodule = build(compose(f"method={method}", "debug=fast"))
    record = Record()
    before = {n: p.clone() for n, p in module.named_parameters()}
    fit(module, datamodule, make_trainer(tmp_path, TeacherUpdate(), record, max_epochs=1, limit_train_batches=2))
    assert len(record.losses) == 2
    assert all(torch.isfinite(torch.tensor(record.losses)))
    moved = [n for n, p in module.named_parameters() if not torch.equal(p, before[n])]
    assert any(n.startswith("student.backbone") for n in moved)
    assert module.teacher is None or any(n.startswith("teacher.backbone") for n in moved)


def test_teacher_starts_equal_without_gradient_or_slot(method: str, compose: Any, tmp_path: Path) -> None:
    module, datamodule = build(compose(f"method={method}", "debug=fast"))
    if module.teacher is None:
        assert module.teacher_policy.source == "none"
        return
    student = module.student.state_dict()
    for name, value in module.teacher.state_dict().items():
        assert not isinstance(value, Tensor) or torch.equal(value, student[name]), name
    trainer = make_trainer(tmp_path, TeacherUpdate(), max_epochs=1, limit_train_batches=1)
    fit(module, datamodule, trainer)
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for n, p in module.named_parameters() if p.requires_grad}
    for name, parameter in module.teacher.named_parameters():
        assert not parameter.requires_grad, name
        assert parameter.grad is None, name
        assert id(parameter) not in held, name


def test_every_trainable_parameter_gets_a_gradient(method: str, compose: Any, tmp_path: Path) -> None:
    """Otherwise DDP would need find_unused_parameters."""
    module, datamodule = build(compose(f"method={method}", "debug=fast"))
    missing: list[str] = []

    class Look(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            missing.extend(n for n, p in pl_module.named_parameters() if p.requires_grad and p.grad is None)

    fit(module, datamodule, make_trainer(tmp_path, Look(), max_epochs=1, limit_train_batches=1))
    assert missing == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_moves_exactly_once_per_optimizer_step(
    method: str, accumulate: int, compose: Any, tmp_path: Path
) -> None:
    """Five batches: with accumulation the last window is ragged."""
    module, datamodule = build(compose(f"method={method}", "debug=fast"))
    if module.teacher is None:
        assert module.teacher_policy.source == "none"
        return
    record = Record()
    teacher = {n: p.clone() for n, p in module.teacher.named_parameters()}
    trainer = make_trainer(
        tmp_path, TeacherUpdate(), record, max_epochs=1, limit_train_batches=5, accumulate_grad_batches=accumulate
    )
    fit(module, datamodule, trainer)
    steps = 0
    for i in range(5):
        if (i + 1) % accumulate == 0 or i == 4:
            steps += 1
            m = record.momenta[i]
            assert m is not None
            if m < 1.0:
                student = record.students[i]
                teacher = {n: m * t.double() + (1 - m) * student[n].double() for n, t in teacher.items()}
        moved = record.teachers[i]
        assert moved is not None
        for name, value in moved.items():
            torch.testing.assert_close(value.double(), teacher[name].double(), rtol=0, atol=1e-6)
    assert module.clock.step == steps


class Validated(L.Callback):
    """The module's state when a validation within training begins and ends."""

    def __init__(self) -> None:
        self.pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = copy.deepcopy(pl_module.state_dict())
        self._momentum = next(c for c in trainer.callbacks if isinstance(c, TeacherUpdate)).state_dict()  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pairs.append((self._before, copy.deepcopy(pl_module.state_dict())))
        update = next(c for c in trainer.callbacks if isinstance(c, TeacherUpdate))  # type: ignore[attr-defined]
        assert update.state_dict() == self._momentum


def test_validation_moves_nothing(method: str, compose: Any, tmp_path: Path) -> None:
    module, datamodule = build(compose(f"method={method}", "debug=fast"))
    validated = Validated()
    # in the middle of the epoch, with gradients half accumulated
    settings: dict[str, Any] = {"limit_train_batches": 4, "val_check_interval": 3, "accumulate_grad_batches": 2}
    fit(
        module,
        datamodule,
        make_trainer(tmp_path, TeacherUpdate(), validated, max_epochs=1, limit_val_batches=1, **settings),
    )
    assert module.clock.step == 2
    assert validated.pairs
    for before, after in validated.pairs:
        for name, value in after.items():
            assert not isinstance(value, Tensor) or torch.equal(value, before[name]), name


def test_the_teacher_keeps_its_mode(method: str, compose: Any) -> None:
    module, _ = build(compose(f"method={method}", "debug=fast"))
    if module.teacher is None:
        assert module.teacher_policy.source == "none"
        return
    own = module.teacher_policy.mode == "train"
    assert module.teacher.training is own
    module.train()
    assert module.student.training
    assert module.teacher.training is own
    module.eval()
    assert not module.teacher.training
    module.train()
    assert module.teacher.training is own


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 3), (2, 4), (1, 9)])
def test_resume_equals_the_uninterrupted_run(
    method: str, accumulate: int, stop: int, compose: Any, tmp_path: Path
) -> None:
    """Bit for bit: loss, images, views, student, teacher; stopped in the middle and at the end of an epoch."""

    class Save(L.Callback):
        """Last of the callbacks, as the runner's own interrupt is."""

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            self.batches = getattr(self, "batches", 0) + 1
            if self.batches == stop:
                trainer.save_checkpoint(tmp_path / "stop.ckpt")

    settings: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 9, "accumulate_grad_batches": accumulate}
    config = compose(f"method={method}", "debug=fast", "data.batch_size=16")
    module, datamodule = build(config)
    whole = Record()
    fit(module, datamodule, make_trainer(tmp_path, TeacherUpdate(), whole, Save(), **settings))
    assert len(whole.losses) == 2 * 9

    again, datamodule = build(config)
    rest = Record()
    trainer = make_trainer(tmp_path, TeacherUpdate(), rest, **settings)
    fit(again, datamodule, trainer, ckpt_path=tmp_path / "stop.ckpt", weights_only=True)
    assert len(rest.losses) == len(whole.losses) - stop
    for a, b in zip(whole.index[stop:], rest.index, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.crops[stop:], rest.crops, strict=True):
        assert torch.equal(a, b)
    assert whole.losses[stop:] == rest.losses
    assert whole.momenta[stop:] == rest.momenta
    for name, value in module.state_dict().items():
        assert not isinstance(value, Tensor) or torch.equal(value, again.state_dict()[name]), name
    assert module.clock == again.clock


def test_a_step_can_be_profiled_with_its_shapes(method: str, compose: Any, tmp_path: Path) -> None:
    """The profiler looks at what functions are given, ours too."""
    module, datamodule = build(compose(f"method={method}", "debug=fast", "data.batch_size=8"))
    trainer = make_trainer(tmp_path, max_epochs=-1, max_steps=1, limit_val_batches=0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        fit(module, datamodule, trainer)
    assert any(event.input_shapes for event in profile.events())


def test_half_precision_weights_are_refused(method: str, compose: Any, tmp_path: Path) -> None:
    module, datamodule = build(compose(f"method={method}", "debug=fast"))
    with pytest.raises(ValueError, match=r"trainer.precision: bf16-true given"):
        fit(module, datamodule, make_trainer(tmp_path, precision="bf16-true", max_epochs=1))


def test_a_bare_trainer_gets_the_teacher_update(method: str, compose: Any, tmp_path: Path) -> None:
    module, datamodule = build(compose(f"method={method}", "debug=fast"))
    trainer = make_trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    fit(module, datamodule, trainer)
    assert sum(isinstance(c, TeacherUpdate) for c in trainer.callbacks) == 1  # type: ignore[attr-defined]
    assert module.clock.step == 1


def test_is_short_and_final(method: str, compose: Any) -> None:
    """DESIGN rule 2: content only, no order of its own, no method on a method."""
    kind = type(build_method(compose(f"method={method}")))
    assert kind.__mro__[1] is SelfDistillModule
    owned = {"training_step", "configure_optimizers", "configure_callbacks", "train", "on_train_batch_end"}
    assert not owned & set(vars(kind))
