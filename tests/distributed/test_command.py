"""The command with two processes is the command with one and twice the batch: one folder, the same figures."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
# no batch norm, whose statistics are each process's own on a CPU; views depend on the sample alone
SETTINGS = (
    "method=dino_like", "backbone=small_vit", "method.head_norm=null", "trainer.accelerator=cpu", "optimizer.lr=0.001",
    "trainer.max_epochs=2", "trainer.limit_train_batches=4", "trainer.log_every_n_steps=1", "evaluation.draws=2",
)  # fmt: skip

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "src.train", *SETTINGS, *arguments, f"hydra.run.dir={folder}"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    return folder


def losses(folder: Path) -> list[float]:
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("one") / "run", "data.batch_size=128")


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_two_processes_leave_what_one_leaves(trainer: str, one: Path, tmp_path: Path) -> None:
    two = run(tmp_path / "run", f"trainer={trainer}", "trainer.devices=2", "data.batch_size=64")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
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


def test_a_sharded_run_is_evaluated_and_continued_by_one_process(tmp_path: Path) -> None:
    """What is written in the middle of a sharded run continues without shards, and ends as it does with them."""
    shared = ("trainer=fsdp2", "trainer.devices=2", "data.batch_size=64", "+trainer.enable_checkpointing=true")
    keep = "callbacks.last.save_top_k=-1", "callbacks.last.filename=last-{epoch}"
    whole = run(tmp_path / "whole", *shared, *keep)
    middle = whole / "checkpoints" / "last-epoch=0.ckpt"
    again = run(tmp_path / "again", *shared, f"ckpt_path='{middle}'")
    a, b = (load_file(folder / "backbone.safetensors") for folder in (whole, again))
    for name, value in a.items():
        assert torch.equal(b[name], value), name
