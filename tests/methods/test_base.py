"""The order of a step, on the smallest method there can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from trainers import bare_trainer

from selfdistill.methods import BYOL, Outputs, SelfDistillModule
from selfdistill.methods.accumulation import images_of_step
from selfdistill.methods.finite import NonFiniteLossError
from selfdistill.networks import ModuleBackbone, SmallCNN, Tower
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import LinearSchedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import ViewLoader, Views

BOTH = frozenset({"teacher", "student"})


class Minimal(SelfDistillModule[Outputs, Outputs]):
    """Mean squared distance; writes down what happens."""

    def __init__(self, factor: float = 1.0, **settings: Any) -> None:
        torch.manual_seed(0)
        super().__init__(
            Tower(ModuleBackbone(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), dim=3), nn.Linear(3, 2)),
            **{
                "teacher": TeacherPolicy(0.5),
                "optimizer": OptimizerRecipe("sgd", 0.1, schedule="constant", momentum=0.0),
                **settings,
            },
        )
        self.factor = factor
        self.happened: list[str] = []

    def targets(self, views: Views) -> Outputs:
        assert not torch.is_grad_enabled()
        self.happened.append("targets")
        features, projections = self.teaching_tower(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        self.happened.append("predictions")
        features, projections = self.student(views.student)
        return Outputs(projections, features.pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        assert not torch.is_autocast_enabled("cpu")
        self.happened.append("terms")
        distance = (predictions.projections - targets.projections).square().mean()
        return {"near": self.factor * distance, "size": predictions.projections.square().mean()}

    def observe(self, predictions: Outputs, targets: Outputs) -> None:
        assert not torch.is_grad_enabled()
        assert self.student.head.weight.grad is not None
        self.happened.append("observe")


class Extra(nn.Module):
    def __init__(self, name: str = "extra") -> None:
        super().__init__()
        self.name = name
        self.observed = 0

    def terms(self, module: Any, views: Views, predictions: Any, targets: Any) -> dict[str, Tensor]:
        return {self.name: predictions.features.square().mean()}

    def observe(self, module: Any, views: Views, predictions: Any, targets: Any) -> None:
        self.observed += 1


def batches(count: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    crops = [[torch.randn(5, 1, 2, 2, generator=generator) for _ in range(2)] for _ in range(count)]
    views: Any = [Views(pair, (BOTH, BOTH)) for pair in crops]
    return DataLoader(views, batch_size=None, collate_fn=lambda batch: batch)


def fit(
    module: L.LightningModule, tmp_path: Path, *callbacks: L.Callback, loader: Any = None, **settings: Any
) -> L.Trainer:
    trainer = bare_trainer(tmp_path, *callbacks, **{"max_epochs": 1, **settings})
    trainer.fit(module, batches() if loader is None else loader)
    return trainer


def test_the_order_of_a_step(tmp_path: Path) -> None:
    module = Minimal()
    fit(module, tmp_path)
    assert module.happened == ["targets", "predictions", "terms", "observe"] * 3


def test_the_loss_is_the_weighed_sum_of_scheduled_terms(tmp_path: Path) -> None:
    weights = {"near": 2.0, "size": LinearSchedule(0.0, 3.0), "small": 0.5}
    module = Minimal(weights=weights, objectives={"small": Extra()})
    seen: list[dict[str, Any]] = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            seen.append(outputs)

    fit(module, tmp_path, Keep())
    for k, outputs in enumerate(seen):
        terms = outputs["terms"]
        expected = 2 * terms["near"] + k * terms["size"] + 0.5 * terms["extra"]
        torch.testing.assert_close(outputs["loss"], expected)
        assert not any(t.requires_grad for t in (*terms.values(), outputs["student"].features))
    assert module.objectives["small"].observed == 3  # type: ignore[union-attr]


def test_unknown_weights_and_doubled_terms_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights: 'far' given, allowed is near, size"):
        fit(Minimal(weights={"far": 1.0}), tmp_path)
    with pytest.raises(ValueError, match="the term 'near' exists twice"):
        fit(Minimal(objectives={"extra": Extra("near")}), tmp_path)


def test_the_first_non_finite_term_stops_the_run_by_name(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"'near' is nan at step 0.*optimizer\.lr.*\(optimizer\.warmup\)$"):
        fit(Minimal(factor=float("nan")), tmp_path)


@pytest.mark.parametrize(("device", "looks"), [("cpu", [0, 1, 2, 3, 4, 5]), ("cuda", [0, 3])])
def test_on_a_device_the_loss_is_looked_at_where_it_is_logged(
    device: str, looks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Minimal, "device", property(lambda self: torch.device(device)))
    for name in ("log", "log_dict"):  # Lightning puts numbers on the device
        monkeypatch.setattr(Minimal, name, lambda *_, **__: None)
    monkeypatch.setattr(Minimal, "_refuse_non_finite", lambda self: seen.append(self.clock.step))
    fit(Minimal(), tmp_path, loader=batches(6), log_every_n_steps=3)
    assert seen == looks


def test_the_optimizer_follows_the_clock(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    recipe = OptimizerRecipe("sgd", 0.4, schedule="linear")
    fit(Minimal(optimizer=recipe), tmp_path, Rates(), loader=batches(4))
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_the_batch_of_a_step_scales_the_rate(tmp_path: Path) -> None:
    module = BYOL(SmallCNN(3, (4, 4, 4, 6)), hidden_dim=8, out_dim=5)
    trainer = fit(module, tmp_path, loader=ViewLoader(Pictures(), batch_size=4, size=8), accumulate_grad_batches=2)
    assert images_of_step(trainer) == 8
    for group in trainer.optimizers[0].param_groups:
        assert group["base_lr"] == pytest.approx(0.45 * 8 / 256)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_optimizer_is_fused_unless_a_scaler_may_skip_its_steps(scaled: bool, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)] if scaler else []  # type: ignore[arg-type]
    trainer = fit(Minimal(), tmp_path, max_epochs=1, plugins=plugins)
    assert all(bool(group["fused"]) is not scaled for group in trainer.optimizers[0].param_groups)


class Pictures(Dataset[Tensor]):
    """Somebody's unlabelled images."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 12, 10), generator=generator, dtype=torch.uint8)


def test_one_line_in_somebodys_project(tmp_path: Path) -> None:
    """README's reuse: a bare Trainer, a timm name or an own network, a data set of their own."""
    own = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module = BYOL(own, hidden_dim=8, out_dim=5)
    assert module.teacher is not None
    before = next(module.teacher.parameters()).clone()
    fit(module, tmp_path, loader=ViewLoader(Pictures(), views="byol", batch_size=4, size=8), max_epochs=2)
    assert module.clock.step == 8
    assert not torch.equal(next(module.teacher.parameters()), before)


def test_a_run_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        fit(Minimal(), tmp_path, max_epochs=-1)
