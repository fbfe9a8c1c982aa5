"""What the monitor measures, when it speaks, and on whose modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from selfdistill.callbacks import CollapseMonitor
from selfdistill.evaluation.geometry import effective_rank, feature_std
from selfdistill.teacher import make_teacher


class Foreign(L.LightningModule):
    """Somebody's module, whose features collapse from a given step on."""

    def __init__(self, collapses_at: int = 10**9, back_at: int = 10**9, key: str = "mine") -> None:
        super().__init__()
        self.student = nn.Linear(6, 4)
        self.teacher = make_teacher(self.student)
        self.collapses_at, self.back_at, self.key = collapses_at, back_at, key
        self.features: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        features = self.student(batch[0])
        step = self.global_step
        if self.collapses_at <= step < self.back_at:
            features = features * 1e-6 + 1.0
        self.features.append(features.detach())
        return {"loss": features.square().mean(), self.key: features}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=1e-3)


def fit(
    module: L.LightningModule, monitor: CollapseMonitor, tmp_path: Path, steps: int = 12, **settings: Any
) -> L.Trainer:
    generator = torch.Generator().manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(16 * steps, 6, generator=generator)), batch_size=16)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        **{"logger": False, **settings},
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=[monitor],
    )
    trainer.fit(module, data)
    return trainer


def mine(outputs: Any) -> Tensor:
    return outputs["mine"]


def test_logs_what_the_step_returned_every_n_steps(tmp_path: Path) -> None:
    module = Foreign()
    trainer = fit(module, CollapseMonitor(every=5, embed=mine), tmp_path, logger=CSVLogger(tmp_path, "", ""))
    assert isinstance(trainer.logger, CSVLogger)
    rows = [r for r in trainer.logger.experiment.metrics if "monitor/std" in r] or _rows(tmp_path)
    assert [int(float(r["step"])) for r in rows] == [0, 5, 10]
    for row, features in zip(rows, (module.features[0], module.features[5], module.features[10]), strict=True):
        assert float(row["monitor/std"]) == pytest.approx(float(feature_std(features)), rel=1e-5)
        assert float(row["monitor/rank"]) == pytest.approx(float(effective_rank(features)), rel=1e-5)
        assert float(row["monitor/teacher_distance"]) >= 0


def _rows(folder: Path) -> list[dict[str, str]]:
    import csv

    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("monitor/std")]


def test_names_a_constant_vector_once(tmp_path: Path) -> None:
    monitor = CollapseMonitor(every=1, patience=3, embed=mine)
    with pytest.warns(UserWarning, match=r"collapse \(complete\) at step 7.*optimizer\.lr") as caught:
        fit(Foreign(collapses_at=4), monitor, tmp_path)
    assert sum("collapse" in str(w.message) for w in caught) == 1
    assert monitor.kind == "complete"


def test_a_short_dip_is_no_collapse(tmp_path: Path) -> None:
    monitor = CollapseMonitor(every=1, patience=3, embed=mine)
    fit(Foreign(collapses_at=4, back_at=6), monitor, tmp_path)
    assert monitor.kind is None


def test_a_healthy_run_is_silent(tmp_path: Path) -> None:
    monitor = CollapseMonitor(every=1, embed=mine)
    fit(Foreign(), monitor, tmp_path)
    assert monitor.kind is None


@pytest.mark.parametrize("key", ["mine", "student"])
def test_says_when_it_has_nothing_to_watch(key: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="CollapseMonitor is off.*embed"):
        fit(Foreign(key=key), CollapseMonitor(), tmp_path)


def test_remembers_across_a_resume() -> None:
    monitor, other = CollapseMonitor(), CollapseMonitor()
    monitor._judge(0.0, 1)
    monitor._judge(0.0, 2)
    other.load_state_dict(monitor.state_dict())
    with pytest.warns(UserWarning, match="collapse"):
        other._judge(0.0, 3)


@pytest.mark.parametrize("name", ["every", "patience"])
def test_bad_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"CollapseMonitor.{name}: 0 given"):
        CollapseMonitor(**{name: 0})
