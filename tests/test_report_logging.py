"""Temperatures as curves, and the page's panels in wandb."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import nn

from selfdistill.callbacks import TemperatureLog
from selfdistill.report import write_report
from selfdistill.report.sheet import save_sheet
from selfdistill.report.wandb_panels import log_panels
from selfdistill.schedules import Clock, ConstantSchedule, LinearSchedule


class Written:
    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((values, step))


class Sharpened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(total_steps=10)
        self.teacher_temperature = LinearSchedule(0.04, 0.08, 1.0)
        self.epsilon = ConstantSchedule(0.05)
        self.divergence = nn.Module()
        self.divergence.student_temperature = ConstantSchedule(0.1)  # type: ignore[assignment]
        self.divergence.teacher_temperature = ConstantSchedule(1.0)  # type: ignore[assignment]


def test_temperatures_are_written_once_a_step_on_the_trainers_steps() -> None:
    module, written = Sharpened(), Written()
    trainer = SimpleNamespace(log_every_n_steps=5, accumulate_grad_batches=2, loggers=[written], global_step=0)
    for batch in range(20):
        trainer.global_step = batch // 2
        module.clock = Clock(batch // 2, total_steps=10)
        TemperatureLog().on_train_batch_start(cast(Any, trainer), cast(Any, module), None, batch)
    assert [step for _, step in written.rows] == [0, 5]
    for (values, _), expected in zip(written.rows, (0.04, 0.06), strict=True):
        assert values == {
            "temperature/teacher_temperature": pytest.approx(expected),
            "temperature/divergence.student_temperature": 0.1,
        }


@pytest.mark.parametrize("module", [nn.Linear(2, 2), SimpleNamespace(clock=Clock(), named_modules=list)])
def test_a_module_without_temperatures_writes_nothing(module: Any) -> None:
    written = Written()
    trainer = SimpleNamespace(log_every_n_steps=1, accumulate_grad_batches=1, loggers=[written], global_step=0)
    TemperatureLog().on_train_batch_start(cast(Any, trainer), module, None, 0)
    trainer.log_every_n_steps = 0
    TemperatureLog().on_train_batch_start(cast(Any, trainer), cast(Any, Sharpened()), None, 0)
    assert written.rows == []


def test_temperatures_stand_among_the_curves(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path)}))
    names = "temperature/teacher_temperature,temperature/student_temperature,temperature/divergence.student_temperature"
    (tmp_path / "metrics.csv").write_text(f"step,{names}\n0,.04,.1,.5\n9,.07,.1,.5\n")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Temperatures in temperature τ over the optimizer step: student, teacher, divergence.student" in text


class Offline(WandbLogger):
    """A wandb logger without a run."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(log=self.logged.append)


def test_wandb_gets_images_tables_and_the_page(tmp_path: Path) -> None:
    import wandb

    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path)}))
    figures = {"trained": {"knn": 0.5}, "raw_pixels": {"knn": 0.6, "one_shot": 0.1}}
    (tmp_path / "summary.json").write_text(json.dumps({"figures": figures}))
    sheet = save_sheet(tmp_path / "pictures", "views", torch.zeros(1, 2, 3, 48, 48))
    embedding = {"pca": [[0, 1], [2, 3]], "tsne": None, "explained": [0.5, 0.2], "classes": [4, 5]}
    panels = {"views": sheet | {"titles": ["stored", "global 8x8\nstudent"]}, "embedding": embedding, "left_out": {}}
    (tmp_path / "pictures" / "panels.json").write_text(json.dumps(panels))
    write_report(tmp_path)
    logger = Offline()
    log_panels([CSVLogger(tmp_path / "csv"), logger], tmp_path)
    (logged,) = logger.logged
    names = {"views", "embedding", "figures", "verdict", "page"}
    assert logged.keys() == {f"report/{name}" for name in names}
    assert isinstance(logged["report/views"], wandb.Image)
    assert logged["report/views"].image.size == (100, 50)
    assert logged["report/embedding"].columns == ["class", "pca_x", "pca_y"]
    assert logged["report/embedding"].data == [[4, 0, 1], [5, 2, 3]]
    assert logged["report/figures"].columns == ["representation", "k-NN", "1-shot"]
    assert logged["report/figures"].data == [["trained backbone", 0.5, None], ["raw pixels", 0.6, 0.1]]
    assert logged["report/page"].html == (tmp_path / "report.html").read_text(encoding="utf-8")


def test_wandb_gets_cost_alarms_and_what_differs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path), "seed": 7, "kept": f"{tmp_path}/in"}))
    alarm = {"kind": "complete", "step": 40, "since": 30, "line": "complete collapse: std 0.01 < 0.1; lower the rate"}
    summary = {
        "method": "dino_like",
        "collapse": "complete",
        "alarms": [alarm],
        "mends": ["from step 20, seed 1"],
        "cost": {"predicted": {"bytes": {"teacher": 2**20, "model_total": 3 * 2**20}, "flops": {"step": 2e9}}},
        "seconds": {"train": 90.0},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_report(tmp_path)
    logger = Offline()
    log_panels([logger], tmp_path)
    (logged,) = logger.logged
    assert logged.keys() == {f"report/{name}" for name in ("verdict", "cost", "differences", "page")}
    assert logged["report/verdict"].columns == ["what", "step", "since step", "said"]
    assert logged["report/verdict"].data == [
        ["verdict", None, None, "Complete collapse since step 30: std 0.01 < 0.1; lower the rate."],
        ["complete collapse", 40, 30, alarm["line"]],
        ["rolled back", None, None, "from step 20, seed 1"],
    ]
    assert logged["report/cost"].columns == ["of", "part", "value"]
    assert logged["report/cost"].data == [
        ["memory", "teacher", "1.00 MiB"],
        ["memory", "= 2·M_model + M_optimizer", "3.00 MiB"],
        ["work", "a step, counted", "2.000 GFLOP"],
        ["time", "training", "90 s"],
    ]
    assert logged["report/differences"].columns == ["key", "this run", "by default"]
    assert logged["report/differences"].data == [["seed", "7", "0"]]


def test_the_neighbours_caption_tells_who_is_right(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path)}))
    sheet = save_sheet(tmp_path / "pictures", "neighbours", torch.zeros(2, 3, 3, 48, 48))
    more = {"typical": 1, "mistaken": 0.1, "bank": 9, "tests": 5}
    panel = sheet | more | {"labels": [[4, 4, 7], [1, 0, 1]], "similarity": [[0.981, 0.912], [0.5, 0.4]]}
    (tmp_path / "pictures" / "panels.json").write_text(json.dumps({"neighbours": panel}))
    write_report(tmp_path)
    logger = Offline()
    log_panels([logger], tmp_path)
    assert logger.logged[0]["report/neighbours"]._caption == (
        "each row: a test image, then its nearest training images (cosine): "
        "class 4: 4 right (0.98), 7 wrong (0.91); class 1: 0 wrong (0.50), 1 right (0.40)"
    )
