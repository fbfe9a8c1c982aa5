"""Sweeps of real jobs under Hydra's launchers and Optuna; Ctrl-C, two processes a job, wandb."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAST = ("debug=fast", "trainer.accelerator=cpu", "evaluation.draws=2")

pytestmark = pytest.mark.slow


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "src.train", "-m", *arguments, f"hydra.sweep.dir='{folder}'"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, *arguments: str) -> str:
    process = start(folder, *arguments)
    printed, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return printed


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def test_joblib_refusal_and_one_wandb_group(tmp_path: Path) -> None:
    folder = tmp_path / "a sweep"
    grid = ("method=byol_like,ema_teacher,swav_like", "divergence=cosine", "logger=wandb")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    run(folder, *grid, *launcher, *FAST)
    *finished, refused = rows(folder)
    assert len(finished) == 2
    for done in finished:
        assert done["status"] == "finished"
        assert 0 <= float(done["validation_knn"]) <= 1
        assert (folder / done["run"] / "report.html").is_file()
    assert refused["status"] == "refused"
    assert refused["line"].startswith("divergence: Cosine given to SwAV, but its loss is fixed")
    assert "Cosine given to SwAV, but its loss" in (folder / "comparison.html").read_text(encoding="utf-8")
    for done in finished:
        (stored,) = (folder / done["run"] / "wandb").glob("offline-run-*/*.wandb")
        assert b"a sweep" in stored.read_bytes().replace(str(folder).encode(), b"")


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_ctrl_c_stops_after_the_step_and_the_same_command_continues(launcher: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = ["seed=0,1", *FAST, "trainer.max_epochs=3", "trainer.limit_train_batches=4"]
    if launcher == "joblib":
        arguments += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    process = start(folder, *arguments)
    log = folder / "jobs" / "000.log"
    while process.poll() is None and not (log.is_file() and "epoch" in log.read_text()):
        # what it prints last is what it has done
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "the same command continues the sweep" in errors
    assert [row["status"] for row in rows(folder)] == ["interrupted", "waiting"]
    assert (folder / "comparison.html").is_file()
    printed = run(folder, *arguments)
    assert "goes on in 000" in printed
    assert [row["status"] for row in rows(folder)] == ["finished", "finished"]
    assert [row["optimizer_steps"] for row in rows(folder)] == ["12", "12"]


def test_optuna_finds_its_trials_again(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    search = ("hparams_search=optuna", "hydra.sweeper.n_trials=2", *FAST)
    run(folder, *search)
    first = rows(folder)
    assert [row["status"] for row in first] == ["finished", "finished"]
    assert all(0.99 <= float(row["teacher.momentum"]) <= 0.9999 for row in first)
    assert all(1e-4 <= float(row["optimizer.lr"]) <= 1e-3 for row in first)
    best = (folder / "optimization_results.yaml").read_text(encoding="utf-8")
    assert f"best_value: {max(row['validation_knn'] for row in first)}" in best
    printed = run(folder, *search)
    assert printed.count("finished before") == 2
    assert rows(folder) == first


def test_submitit_starts_each_job_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    run(folder, "seed=0", "hydra/launcher=submitit_local", *FAST)
    assert [row["status"] for row in rows(folder)] == ["finished"]


def test_the_second_process_of_a_job_does_not_run_the_sweep_again(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    two = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.use_distributed_sampler=false")
    run(folder, "seed=0,1", *two, *FAST)
    assert [row["status"] for row in rows(folder)] == ["finished", "finished"]
    assert sorted(path.name for path in folder.glob("*/config.yaml")) == ["config.yaml"] * 2
    assert {path.parent.name for path in folder.glob("*/config.yaml")} == {"000", "001"}
