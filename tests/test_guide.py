"""The guide "write your own method" is true: its files, as they stand in it, train by its command."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "write_your_own_method.md"


def files_of_the_guide() -> dict[str, str]:
    """Each block that a file's name stands above."""
    text = GUIDE.read_text(encoding="utf-8")
    return {m[1]: m[2] for m in re.finditer(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    for name, text in files_of_the_guide().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def command(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"src.{module}", *arguments], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_method_has_its_twenty_lines() -> None:
    files = files_of_the_guide()
    assert set(files) == {"mine.py", "settings/method/mine.yaml"}
    body = files["mine.py"].partition("class Mine")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_it_learns_and_is_evaluated(folder: Path) -> None:
    settings = ["trainer.accelerator=cpu", "trainer.max_epochs=8", "trainer.log_every_n_steps=1", "evaluation.draws=2"]
    done = command(
        folder, "train", "--config-dir", str(folder / "settings"), "method=mine", *settings,
        f"hydra.run.dir='{folder}/run'",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(folder / "run" / "metrics.csv", encoding="utf-8") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    figures = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))["figures"]
    assert figures["trained"]["one_shot"] > figures["initial"]["one_shot"] + 0.02
    state = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    moved = [n for n in state if n.startswith("teacher.") and n.endswith("weight")]
    # the teacher follows, behind
    assert all(not torch.equal(state[n], state[n.replace("teacher.", "student.", 1)]) for n in moved)
    evaluated = command(folder, "evaluate", f"checkpoint={folder}/run", "protocol=geometry", "trust=true")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Mine, student network, digits" in evaluated.stdout
