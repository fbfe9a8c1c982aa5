"""What the monitor logs, what it does when it names something, and on whose modules."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import bare_trainer

from selfdistill.callbacks import CollapseError, CollapseMonitor, TeacherUpdate, Thresholds
from selfdistill.callbacks.collapse_rollback import (
    LR_FACTOR,
    HealthyStates,
    change_targets,
    lowers_learning_rate,
)
from selfdistill.callbacks.collapse_verdict import Verdict
from selfdistill.evaluation.geometry import effective_rank, feature_std, parameter_distance
from selfdistill.optim import scale_learning_rate
from selfdistill.targets import Center
from selfdistill.teacher import make_teacher


class Foreign(L.LightningModule):
    """Somebody's module, whose features collapse from a given step on, as long as its learning rate is high."""

    def __init__(self, collapses_at: int = 10**9, back_at: int = 10**9, key: str = "mine", dies: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(6, 4)
        self.teacher = make_teacher(self.student)
        self.center = Center(4, momentum=1.0)
        self.collapses_at, self.back_at, self.key, self.dies = collapses_at, back_at, key, dies
        self.features: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        self.weights.append(self.student.weight.detach().clone())
        self.biases.append(self.student.bias.detach().clone())
        step = self.global_step
        # of the step, not of the loader, which a resume begins anew
        features = self.student(torch.randn(16, 6, generator=torch.Generator().manual_seed(step)))
        sick = self.collapses_at <= step < self.back_at
        if sick and not (self.dies and self.optimizers().param_groups[0]["lr"] < 1e-3):  # type: ignore[union-attr]
            features = features * 1e-6 + 1.0
        self.features.append(features.detach())
        self.center.observe(features.detach())
        return {"loss": features.square().mean(), self.key: features}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=1e-3, momentum=0.9)


def fit(
    module: L.LightningModule, monitor: CollapseMonitor, tmp_path: Path, steps: int = 12, **settings: Any
) -> L.Trainer:
    data = DataLoader(TensorDataset(torch.zeros(steps)), batch_size=1)
    others = settings.pop("callbacks", [])
    checkpoint = settings.pop("ckpt_path", None)
    trainer = bare_trainer(tmp_path, monitor, *others, **{"max_epochs": 1, **settings})
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


def mine(outputs: Any) -> Tensor:
    return outputs["mine"]


def watch(**settings: Any) -> CollapseMonitor:
    return CollapseMonitor(**{"every": 1, "embed": mine, **settings})


def test_logs_what_the_step_returned_every_n_steps(tmp_path: Path) -> None:
    module = Foreign()
    trainer = fit(module, watch(every=5), tmp_path, logger=CSVLogger(tmp_path, "", ""))
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("monitor/std")]
    assert [int(float(r["step"])) for r in rows] == [0, 5, 10]
    for row, features in zip(rows, (module.features[0], module.features[5], module.features[10]), strict=True):
        assert float(row["monitor/std"]) == pytest.approx(float(feature_std(features)), rel=1e-5)
        assert float(row["monitor/rank"]) == pytest.approx(float(effective_rank(features)), rel=1e-5)
        assert float(row["monitor/gradient_norm"]) > 0
    distance = parameter_distance(module.teacher.parameters(), [module.weights[11], module.biases[11]])
    assert float(rows[2]["monitor/teacher_distance"]) == pytest.approx(float(distance), rel=1e-4)
    assert not rows[0]["monitor/gradient_signal"]
    assert -1 <= float(rows[1]["monitor/gradient_signal"]) <= 1
    assert "monitor/rank" in trainer.callback_metrics


class Growing(Foreign):
    """Whose loss and gradient explode from step 10 on."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        return {**outputs, "loss": outputs["loss"] * 10.0 ** max(self.global_step - 9, 0)}


@pytest.mark.parametrize(("module", "kind"), [(Growing(), "diverging"), (Foreign(collapses_at=10), "complete")])
@pytest.mark.filterwarnings("ignore:collapse monitor")
def test_the_log_alone_gives_the_same_alarms(module: Foreign, kind: str, tmp_path: Path) -> None:
    """As `benchmarks/atlas_report.py` judges finished runs by thresholds of another day."""
    monitor = watch()
    fit(module, monitor, tmp_path, steps=20, logger=CSVLogger(tmp_path, "", ""))
    verdict = Verdict()
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("monitor/rank"):
                named = {key.removeprefix("monitor/"): float(v) for key, v in row.items() if "monitor/" in key and v}
                verdict.judge(int(row["step"]), int(row["step"]) / 20, named)
    assert [alarm.kind for alarm in monitor.alarms] == [kind]
    assert verdict.alarms == monitor.alarms


def test_the_age_is_that_of_the_momenta_that_the_teacher_had(tmp_path: Path) -> None:
    """a ← m (a + 1): 4.5, 4.95, … at m = .9; the mean since the last measurement is logged."""
    settings = {"callbacks": [TeacherUpdate(momentum=0.9)], "logger": CSVLogger(tmp_path, "", "")}
    fit(Foreign(), watch(every=4), tmp_path, **settings)
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("monitor/std")]
    ages, age = [], 0.0
    for _ in range(8):
        age = 0.9 * (age + 1)
        ages.append(age)
    assert [row["monitor/teacher_age"] for row in rows[:1]] == [""]
    assert [float(row["monitor/teacher_age"]) for row in rows[1:]] == pytest.approx(
        [sum(ages[:4]) / 4, sum(ages[4:]) / 4]
    )
    drift, distance = (float(rows[2][f"monitor/{name}"]) for name in ("teacher_drift", "teacher_distance"))
    assert drift == pytest.approx(0.1 * distance)
    assert float(rows[2]["monitor/half_life"]) == pytest.approx(6.5788, rel=1e-4)


def test_names_a_constant_vector_once(tmp_path: Path) -> None:
    monitor = watch()
    with pytest.warns(UserWarning, match=r"complete since step 4.*optimizer\.lr") as caught:
        fit(Foreign(collapses_at=4), monitor, tmp_path)
    assert sum("complete" in str(w.message) for w in caught) == 1
    assert monitor.kind == "complete"
    assert [(alarm.since, alarm.step) for alarm in monitor.alarms if alarm.kind == "complete"] == [(4, 6)]


def test_a_short_dip_and_a_healthy_run_are_silent(tmp_path: Path) -> None:
    for module in (Foreign(collapses_at=4, back_at=6), Foreign()):
        monitor = watch()
        fit(module, monitor, tmp_path)
        assert monitor.kind is None
        assert monitor.alarms == []


def test_accumulated_micro_batches_are_one_measurement(tmp_path: Path) -> None:
    monitor = watch(patience=2)
    with pytest.warns(UserWarning, match="complete since step 2"):
        fit(Foreign(collapses_at=2), monitor, tmp_path, steps=16, accumulate_grad_batches=4)
    assert monitor.alarms[0].step == 3


@pytest.mark.parametrize("key", ["mine", "student"])
def test_says_when_it_has_nothing_to_watch(key: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="CollapseMonitor is off.*embed"):
        fit(Foreign(key=key), CollapseMonitor(), tmp_path)


@pytest.mark.filterwarnings("ignore:collapse monitor")
def test_stop_and_raise(tmp_path: Path) -> None:
    module = Foreign(collapses_at=4)
    fit(module, watch(action="stop"), tmp_path, steps=30)
    assert len(module.features) == 7
    with pytest.raises(CollapseError, match="complete since step 4") as caught:
        fit(Foreign(collapses_at=4), watch(action="raise"), tmp_path)
    assert caught.value.alarm.kind == "complete"


@pytest.mark.filterwarnings("ignore:collapse monitor")
def test_a_stopped_run_that_is_continued_as_it_was_stops_again(tmp_path: Path) -> None:
    trainer = fit(Foreign(collapses_at=4), watch(action="stop"), tmp_path, steps=30)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    module, monitor = Foreign(collapses_at=4), watch(action="stop")
    fit(module, monitor, tmp_path, steps=30, ckpt_path=tmp_path / "stopped.ckpt", max_epochs=2)
    assert [alarm.step for alarm in monitor.alarms] == [6, 9]
    assert len(module.features) == 3


@pytest.mark.filterwarnings("ignore:collapse monitor")
def test_rollback_goes_back_and_on_with_the_mend(tmp_path: Path) -> None:
    module, monitor = Foreign(collapses_at=14, dies=True), watch(action="rollback", patience=2)
    update = TeacherUpdate(momentum=0.6)
    trainer = fit(module, monitor, tmp_path, steps=40, callbacks=[update])
    assert monitor.kind is None
    # one vector has rank one: that is not said too
    assert [alarm.kind for alarm in monitor.alarms] == ["complete"]
    # copies at the start and after steps 4 and 9: the older of the last two
    assert monitor.mends == ["complete at step 15: back to step 4, momentum at least 0.6667, learning rate × 0.1"]
    assert torch.equal(module.weights[16], module.weights[5])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR_FACTOR * 1e-3)
    assert len(module.features) == 40


@pytest.mark.filterwarnings("ignore:collapse monitor")
def test_rollback_acts_so_often_and_then_warns(tmp_path: Path) -> None:
    module, monitor = Foreign(collapses_at=10), watch(action="rollback", patience=2, rollbacks=2)
    trainer = fit(module, monitor, tmp_path, steps=40)
    assert len(monitor.mends) == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR_FACTOR**2 * 1e-3)
    assert monitor.kind == "complete"


@pytest.mark.parametrize(
    ("momentum", "kind", "now", "where"),
    [(1.0, "teacher_stale", 1 - 1 / (1 + 6), "as it is"), (0.0, "teacher_copying", 1 - 1 / (1 + 12), "back to step 4")],
)
@pytest.mark.filterwarnings("ignore:collapse monitor")
def test_an_ill_chosen_momentum_is_changed(momentum: float, kind: str, now: float, where: str, tmp_path: Path) -> None:
    """What a teacher that copied has done to the student is undone; one that was left behind has done nothing."""
    module, monitor = Foreign(), watch(action="rollback")
    update = TeacherUpdate(momentum=momentum)
    trainer = fit(module, monitor, tmp_path, steps=120, callbacks=[update])
    assert [alarm.kind for alarm in monitor.alarms] == [kind]
    assert update.momentum == pytest.approx(now)
    assert where in monitor.mends[0]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)
    assert monitor.kind is None


def test_a_collapse_that_comes_back_at_once_leads_to_the_first_copy() -> None:
    module = Foreign()
    trainer: Any = SimpleNamespace(optimizers=[module.configure_optimizers()])
    states = HealthyStates(gap=1)
    for step in (0, 1, 2, 3):
        states.keep(trainer, module, step, lr_factor=1.0)
    assert states.restore(trainer, module, lr_factor=0.1) == 2
    resumed = HealthyStates(gap=1)
    resumed.load_state_dict(states.state_dict())
    for kept in (states, resumed):
        assert kept.restore(trainer, module, lr_factor=0.01) == 0
        assert kept.restore(trainer, module, lr_factor=0.001) == 0
    states.keep(trainer, module, 8, lr_factor=0.001)
    states.keep(trainer, module, 9, lr_factor=0.001)
    assert states.restore(trainer, module, lr_factor=1e-4) == 8


@pytest.mark.filterwarnings("ignore:collapse monitor")
@pytest.mark.parametrize("cut", [9, 14, 15, 17, 25])
def test_every_action_survives_a_resume(cut: int, tmp_path: Path) -> None:
    """Stopped after ``cut`` steps and continued, the run has the same weights, momentum, rates and record."""

    def parts() -> tuple[Foreign, CollapseMonitor, TeacherUpdate]:
        return Foreign(collapses_at=14, dies=True), watch(action="rollback", patience=2), TeacherUpdate(momentum=0.5)

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == cut:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    module, monitor, update = parts()
    trainer = fit(module, monitor, tmp_path, steps=40, callbacks=[update, Save()])
    again, second, other = parts()
    resumed = fit(again, second, tmp_path, steps=40, callbacks=[other], ckpt_path=tmp_path / "cut.ckpt")
    assert second.mends == monitor.mends != []
    assert second.alarms == monitor.alarms
    assert other.momentum == update.momentum
    assert second._lr_factor == monitor._lr_factor == LR_FACTOR
    assert resumed.optimizers[0].param_groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"]
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_going_back_restores_everything_and_forgets_what_the_bad_step_staged() -> None:
    module = Foreign()
    module.center.momentum = 0.5
    optimizer = module.configure_optimizers()
    trainer: Any = SimpleNamespace(optimizers=[optimizer])

    def train() -> None:
        optimizer.zero_grad()
        module.student(torch.ones(1, 6)).square().sum().backward()
        optimizer.step()
        module.center.observe(torch.ones(1, 4))
        module.center.commit()

    train()
    states = HealthyStates(gap=2)
    states.keep(trainer, module, 1, lr_factor=0.5, now=True)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    train()
    after_two = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(2):
        # a second time from the same copy, which the optimizer must not have written to
        module.center.observe(torch.full((1, 4), 100.0))
        assert states.restore(trainer, module, lr_factor=0.5) == 1
        module.center.commit()
        for name, value in module.state_dict().items():
            assert torch.equal(value, kept[name]), name
        train()
        for name, value in module.state_dict().items():
            assert torch.equal(value, after_two[name]), name
    states.restore(trainer, module, lr_factor=0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.1 / 0.5)


def test_a_center_that_stood_still_is_turned_on_and_stays_on() -> None:
    module = Foreign()
    assert not lowers_learning_rate("cluster", module)
    assert change_targets("cluster", module, None, 100) == ["center momentum 0.9"]
    assert module.center.momentum == 0.9
    assert lowers_learning_rate("cluster", module)


def test_rates_of_every_kind_of_schedule_are_scaled() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    scale_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.1)
    assert scheduler.get_last_lr() == [0.4]
    with pytest.raises(ValueError, match="factor: 0 given"):
        scale_learning_rate(optimizer, 0)


def test_the_momentum_is_kept_within_bounds_across_a_resume() -> None:
    update, other = TeacherUpdate(momentum=0.5), TeacherUpdate(momentum=0.5)
    update.keep_within(0.7, 0.9)
    other.load_state_dict(update.state_dict())
    assert other.state_dict()["within"] == [0.7, 0.9]
    with pytest.raises(ValueError, match=r"0.9 to 0.8 given"):
        update.keep_within(0.9, 0.8)


@pytest.mark.parametrize("name", ["every", "patience", "rollbacks", "rows"])
def test_bad_settings_are_refused(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"CollapseMonitor.{name}: 0 given"):
        CollapseMonitor(**settings)
    with pytest.raises(ValueError, match="CollapseMonitor.action: 'panic' given"):
        CollapseMonitor(action="panic")  # type: ignore[arg-type]


def test_single_thresholds_are_set_by_name(tmp_path: Path) -> None:
    monitor = watch(thresholds={"complete_projection": 5.0})
    with pytest.warns(UserWarning, match="complete since step 1"):
        fit(Foreign(), monitor, tmp_path)
    assert watch(thresholds=Thresholds(stale=0.3))._verdict.thresholds.stale == 0.3
