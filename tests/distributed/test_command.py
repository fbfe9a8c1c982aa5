"""The command with two processes is the command with one and twice the batch: one folder, the same figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
# no batch norm, whose statistics are each process's own on a CPU; views depend on the sample alone
SETTINGS = (
    "method=dino_like", "backbone=small_vit", "method.head_norm=null", "trainer.accelerator=cpu", "optimizer.lr=0.001",
    "trainer.max_epochs=2", "trainer.limit_train_batches=4",
    "+callbacks.every._target_=lightning.pytorch.callbacks.ModelCheckpoint", "+callbacks.every.save_top_k=-1",
    "+callbacks.every.dirpath='${run_dir}/checkpoints'", "+callbacks.every.filename='at-{epoch}'",
    "trainer.log_every_n_steps=1", "evaluation.draws=2",
)  # fmt: skip

# "--standalone" takes a free port
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str, launcher: Sequence[str] = ()) -> Path:
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "src.train", *SETTINGS, *arguments, f"hydra.run.dir={folder}"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("one") / "run", "data.batch_size=128")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two processes with half the batch each."""
    shared = ("trainer.devices=2", "data.batch_size=64")
    return {
        trainer: run(tmp_path_factory.mktemp(trainer) / "run", f"trainer={trainer}", *shared)
        for trainer in ("ddp", "fsdp2")
    } | {"torchrun": run(tmp_path_factory.mktemp("torchrun") / "run", "trainer=ddp", *shared, launcher=TORCHRUN)}


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2", "torchrun"])
def test_two_processes_leave_what_one_leaves(trainer: str, one: Path, runs: dict[str, Path]) -> None:
    two = runs[trainer]
    assert [path.name for path in two.parent.iterdir()] == ["run"]
    assert {path.name for path in two.rglob("*")} == {path.name for path in one.rglob("*")}
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (one, two)]
    for name in ("optimizer_steps", "validation_knn", "collapse"):
        assert summaries[0][name] == summaries[1][name], name
    for name, figures in summaries[0]["figures"].items():
        assert summaries[1]["figures"][name] == pytest.approx(figures, abs=0.01)
    whole, ours = (load_file(folder / "backbone.safetensors") for folder in (one, two))
    assert whole.keys() == ours.keys()
    for name, value in whole.items():
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-5), name
    # the file is a plain checkpoint, the exported backbone its evaluated network
    stored = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)
    reference = torch.load(one / "checkpoints" / "last.ckpt", weights_only=True)
    assert {n: v.shape for n, v in stored["state_dict"].items() if isinstance(v, torch.Tensor)} == {
        n: v.shape for n, v in reference["state_dict"].items() if isinstance(v, torch.Tensor)
    }
    for a, b in zip(stored["optimizer_states"], reference["optimizer_states"], strict=True):
        assert a["state"].keys() == b["state"].keys()
        assert [group["params"] for group in a["param_groups"]] == [group["params"] for group in b["param_groups"]]


def test_one_process_continues_a_sharded_run(one: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    middle = runs["fsdp2"] / "checkpoints" / "at-epoch=0.ckpt"
    again = run(tmp_path / "run", "data.batch_size=128", f"ckpt_path='{middle}'")
    whole, ours = (load_file(folder / "backbone.safetensors") for folder in (one, again))
    for name, value in whole.items():
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-5), name


def test_a_sweep_runs_each_job_once(tmp_path: Path) -> None:
    """Lightning starts the further processes with the command of the first: it must not be the sweep's."""
    done = subprocess.run(
        [sys.executable, "-m", "src.train", "-m", *SETTINGS, "debug=fast", "trainer=ddp", "trainer.devices=2",
         "data.batch_size=64", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    finished = sorted(path.parent.name for path in tmp_path.rglob("summary.json"))
    assert len(finished) == 2
    assert done.stdout.count(": finished") == 2, done.stdout
