"""From a checkpoint to a file for others: what the command writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfdistill import tasks
from selfdistill.config import UserError, check
from selfdistill.runner import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    overrides = ["method=ema_teacher", "debug=fast", "evaluation.draws=2", "trainer.accelerator=cpu"]
    config = check("train", overrides).config
    config.run_dir = str(folder)
    config.trainer.enable_progress_bar = False
    fit(config)
    return folder


def export(*overrides: str) -> None:
    tasks.export(check("export", list(overrides)).config)


@pytest.mark.parametrize(("given", "prefix"), [("null", "teacher."), ("student", "student.")])
def test_writes_the_network_that_the_method_evaluates_and_its_card(given: str, prefix: str, run: Path) -> None:
    export(f"checkpoint={run}", f"network={given}")
    folder = run / "export" / "safetensors"
    assert {p.name for p in folder.iterdir()} == {"backbone.safetensors", "backbone.safetensors.md"}
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    written = load_file(folder / "backbone.safetensors")
    inside = f"{prefix}backbone."
    assert written.keys() == {n.removeprefix(inside) for n in state if n.startswith(inside)}
    assert all(torch.equal(value, state[inside + name]) for name, value in written.items())
    card = (folder / "backbone.safetensors.md").read_text(encoding="utf-8")
    knn = json.loads((run / "summary.json").read_text(encoding="utf-8"))["figures"]["trained"]["knn"]
    for told in (f"{knn:.3f}", "EMATeacher on digits", f"The {prefix[:-1]} network", "last.ckpt", "optimizer steps: 2"):
        assert told in card
    assert str(run.parent) not in card


def test_refusals_are_one_line_and_leave_nothing(run: Path, tmp_path: Path) -> None:
    for overrides, says in (
        ([f"checkpoint={run}", "format=gguf"], "format: 'gguf' given, allowed is safetensors, timm"),
        ([f"checkpoint={run}", "format=timm"], "SmallCNN is no timm network"),
        ([f"checkpoint={run}", "format=torchvision", "head=true"], "head: true given"),
        ([f"checkpoint={run}/none"], "no such file"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            export(*overrides, f"output={tmp_path}/x/backbone.safetensors")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_cannot_run_what_it_names(run: Path, tmp_path: Path) -> None:
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    stored["selfdistill"]["config"]["backbone"] = {"_target_": "os.mkdir", "path": str(tmp_path / "ran")}
    torch.save(stored, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"names os\.mkdir, which is not of this package"):
        export(f"checkpoint={tmp_path}/bad.ckpt")
    assert not (tmp_path / "ran").exists()
    stored["selfdistill"]["config"]["backbone"] = {"_target_": "torch.nn.Flatten"}
    torch.save(stored, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="cannot be built|does not fit"):
        export(f"checkpoint={tmp_path}/bad.ckpt", "trust=true")
