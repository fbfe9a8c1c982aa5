"""A method that lives in the user's own folder and module runs as one of the tree does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE = '''
from selfdistill import SelfDistillModule
from selfdistill.divergences import L2
from selfdistill.heads import MLP
from selfdistill.methods import Outputs
from selfdistill.networks import Tower, as_backbone


class Mine(SelfDistillModule):
    """The student's projections follow its teacher's of the other view."""

    def __init__(self, backbone, *, out_dim=32, divergence=None, **parts):
        backbone = as_backbone(backbone)
        super().__init__(Tower(backbone, MLP(backbone.dim, 64, out_dim)), divergence=divergence or L2(), **parts)

    def targets(self, views):
        features, projections = self.teaching_tower(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views):
        features, projections = self.student(views.student)
        return Outputs(projections, features.pooled, views.pairs)

    def terms(self, predictions, targets):
        return {"distill": self.compare(self.divergence, predictions, targets)}


class Fixed(Mine):
    def __init__(self, backbone, **parts):
        super().__init__(backbone, **parts)
'''
CONFIG = """# @package _global_
defaults:
  - override /backbone: small_cnn
  - override /views: byol
  - override /teacher: ema

method:
  _target_: {target}
  {setting}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "settings" / "method").mkdir(parents=True)
    for name, target in (("mine", "mine.Mine"), ("wrong", "mine.Yours"), ("fixed", "mine.Fixed")):
        setting = "out_dim: 16" if name == "mine" else ""
        text = CONFIG.format(target=target, setting=setting)
        (tmp_path / "settings" / "method" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = ("debug=fast", "trainer.accelerator=cpu", "evaluation.draws=2", f"hydra.run.dir='{folder}/run'")
    return subprocess.run(
        [sys.executable, "-m", "src.train", "--config-dir", str(folder / "settings"), *arguments, *settings],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_trains_like_one_of_the_tree(folder: Path) -> None:
    done = train(folder, "method=mine", "objective=koleo", "divergence=cosine")
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["optimizer_steps"] == 2
    assert summary["figures"]["trained"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["method=wrong"], "error: method._target_: 'mine.Yours' given, which cannot be imported"),
        (["method=mine", "teacher=none", "objective=contrastive"], "error: objective.contrastive: no teacher given"),
        (["method=fixed", "divergence=l2"], "error: divergence: L2 given to Fixed, but its loss is fixed"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(folder: Path, arguments: list[str], says: str) -> None:
    done = train(folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(says)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "run").exists()
