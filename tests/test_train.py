"""The command: what it prints and leaves, how it stops, continues and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
FAST = (
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=4",
    "evaluation.draws=2",
    "trainer.log_every_n_steps=2",
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "src.train", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short run to its end: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("a run")
    done = run(*FAST, f"hydra.run.dir='{folder}/whole'")
    assert done.returncode == 0, done.stderr
    return folder / "whole", done.stdout


def test_leaves_what_it_says(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    left = {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "checkpoints",
        "backbone.safetensors",
        "backbone.safetensors.md",
    }
    assert {p.name for p in folder.iterdir()} >= left
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["figures"]) == {"trained", "raw_pixels", "initial"}
    for figures in summary["figures"].values():
        assert set(figures) == {"knn", "one_shot", "five_shot"}
        assert all(0 <= value <= 1 for value in figures.values())
    assert summary["collapse"] is None
    assert summary["alarms"] == []
    assert summary["seconds"]["train"] > 0
    assert summary["optimizer_steps"] == 12
    for text in ("trained backbone", "raw pixels", "backbone at initialisation", "k-NN", str(folder)):
        assert text in printed
    header = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {
        "train/loss",
        "teacher/momentum",
        "optimizer/lr",
        "val/knn",
        "monitor/std",
        "monitor/rank",
        "monitor/teacher_distance",
    } <= set(header)


def test_the_checkpoint_is_plain_data(whole: tuple[Path, str]) -> None:
    stored = torch.load(whole[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["selfdistill"]["method"] == "BYOL"
    assert stored["selfdistill"]["config"]["method"]["_target_"] == "selfdistill.methods.BYOL"


def equal(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            equal(x, y, f"{path}/{i}")
    else:
        assert a == b, path


def test_a_run_is_repeated_from_its_folder_bit_for_bit(whole: tuple[Path, str], tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = run("--config-path", str(whole[0]), "-cn", "config", f"hydra.run.dir='{again}'")
    assert done.returncode == 0, done.stderr
    assert (again / "metrics.csv").read_bytes() == (whole[0] / "metrics.csv").read_bytes()
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole[0], again))
    equal(a, b)
    stored = [(f / "config.yaml").read_text(encoding="utf-8").splitlines() for f in (whole[0], again)]
    assert [x for x, y in zip(*stored, strict=True) if x != y] == [f"run_dir: {whole[0]}"]
    facts = json.loads((again / "provenance.json").read_text(encoding="utf-8"))
    assert "-m src.train --config-path" in facts["command"]
    assert set(facts) == {"command", "git", "versions", "hardware"}
    needed = {"selfdistill", "Python", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "timm", "numpy"}
    assert set(facts["versions"]) == needed
    assert facts["hardware"]["processor"]


def test_ctrl_c_saves_and_the_run_continues_bit_for_bit(whole: tuple[Path, str], tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(*FAST, f"hydra.run.dir='{stopped}'"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("views:")
    # after the costs, the next line is printed when the first epoch ends
    assert any(line.startswith("epoch") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    # the folder is the command's own choice: the same command has to go on in it
    assert "stopped by SIGINT: the same command with ckpt_path=auto continues it" in errors
    assert "Traceback" not in errors
    assert "Stopped before its end: stopped by SIGINT" in (stopped / "report.html").read_text(encoding="utf-8")
    checkpoint = stopped / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] < 12

    continued = tmp_path / "continued"
    done = run(*FAST, f"hydra.run.dir='{continued}'", f"ckpt_path='{checkpoint}'")
    assert done.returncode == 0, done.stderr
    a = torch.load(whole[0] / "checkpoints" / "last.ckpt", weights_only=True)
    b = torch.load(continued / "checkpoints" / "last.ckpt", weights_only=True)
    for part in ("state_dict", "optimizer_states", "global_step", "epoch"):
        equal(a[part], b[part], part)
    figures = [json.loads((f / "summary.json").read_text(encoding="utf-8"))["figures"] for f in (whole[0], continued)]
    assert figures[0] == figures[1]


def test_a_run_with_nothing_left_says_how_to_train_longer(whole: tuple[Path, str], tmp_path: Path) -> None:
    done = run(*FAST, f"ckpt_path='{whole[0]}'", f"hydra.run.dir='{tmp_path}/more'")
    assert done.returncode == 0, done.stderr
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("nothing was left to train"))
    checkpoint = whole[0] / "checkpoints" / "last.ckpt"
    assert line.endswith(f"to train longer: ckpt_path={checkpoint} trainer.max_epochs=<more than 3>")
    before, after = (json.loads((f / "summary.json").read_text()) for f in (whole[0], tmp_path / "more"))
    assert before["figures"] == after["figures"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["method=byol"], "method: 'byol' given"),
        (["teacher.momentum=2"], "teacher.momentum: 2 given"),
        (["backbone=timm", "backbone.name=resnet81"], "backbone.name: 'resnet81' given"),
        (["data.batch_size=5000"], "data.batch_size"),
        (["data.batch_size=null"], "data.batch_size: null given"),
        (["backbone=convnext_tiny"], "backbone: it does not take crops of 8×8 pixels"),
        (["trainer.precision=foo"], "trainer.precision: 'foo' given, allowed is 32-true or 32 or 64-true"),
        (["+foo=1"], "foo: no such key"),
        (["data=folder", "data.root=nowhere"], "data.root"),
        (["trainer.limit_train_batches=0.01"], "trainer.limit_train_batches: 0.01 given, less than one of 9 batches"),
        (["--config-path", "nowhere", "-cn", "config"], "--config-path: 'nowhere' given, no such folder"),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path: 'nowhere.ckpt' given, no such file"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_made(arguments: list[str], says: str, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    done = run(*arguments, f"hydra.run.dir='{folder}'")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not folder.exists()


def test_foreign_checkpoints_are_refused(whole: tuple[Path, str], tmp_path: Path) -> None:
    checkpoint = whole[0] / "checkpoints" / "last.ckpt"
    garbage, foreign = tmp_path / "garbage.ckpt", tmp_path / "foreign.ckpt"
    garbage.write_bytes(checkpoint.read_bytes()[:1000])
    torch.save({"state_dict": {}}, foreign)
    for path, arguments, says in (
        (garbage, [], "not a readable checkpoint"),
        (foreign, [], "not a checkpoint of a selfdistill run"),
        (checkpoint, ["method=ema_teacher"], "a checkpoint of BYOL given, this run is EMATeacher"),
        (checkpoint, ["method.out_dim=32"], "differs between the checkpoint and this run"),
        (checkpoint, ["trainer.max_epochs=2"], "trainer.max_epochs: 2 given, the checkpoint is in epoch 3 already"),
    ):
        done = run(*FAST, *arguments, f"ckpt_path='{path}'", f"hydra.run.dir='{tmp_path}/none'")
        assert done.returncode == 2
        assert says in done.stderr
        assert not (tmp_path / "none").exists()


def test_another_run_is_a_frozen_teacher(whole: tuple[Path, str], tmp_path: Path) -> None:
    """Knowledge distillation into another architecture: the teacher is the run's network, and stays it."""
    checkpoint = whole[0] / "checkpoints" / "last.ckpt"
    folder = tmp_path / "student"
    done = run(
        *FAST,
        "method=ema_teacher",
        "backbone=timm",
        "backbone.name=resnet10t",
        "teacher=frozen",
        f"teacher.checkpoint='{checkpoint}'",
        f"hydra.run.dir='{folder}'",
    )
    assert done.returncode == 0, done.stderr
    source = torch.load(checkpoint, weights_only=True)["state_dict"]
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    teacher = {n.removeprefix("teacher."): v for n, v in state.items() if n.startswith("teacher.")}
    equal(teacher, {n.removeprefix("student."): v for n, v in source.items() if n.startswith("student.")})
    # what is evaluated, stored and exported is what was trained
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["evaluates"] == "student"


def test_a_teachers_checkpoint_may_not_name_code_of_others(whole: tuple[Path, str], tmp_path: Path) -> None:
    stored = torch.load(whole[0] / "checkpoints" / "last.ckpt", weights_only=True)
    stored["selfdistill"]["config"]["backbone"]["_target_"] = "os.system"
    torch.save(stored, tmp_path / "evil.ckpt")
    done = run(
        *FAST, "teacher=frozen", f"teacher.checkpoint='{tmp_path}/evil.ckpt'", f"hydra.run.dir='{tmp_path}/none'"
    )
    assert done.returncode == 2
    assert "names os.system, which is not of this package" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(whole: tuple[Path, str]) -> None:
    before = (whole[0] / "summary.json").read_bytes()
    done = run(*FAST, f"hydra.run.dir='{whole[0]}'")
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert (whole[0] / "summary.json").read_bytes() == before


def test_a_refused_run_leaves_alone_what_another_has_begun(tmp_path: Path) -> None:
    """Of two runs at once into one folder the first goes on: its configuration, all that it has so far, stays."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "provenance.json"):
        (folder / name).write_text("of the first", encoding="utf-8")
    done = run(*FAST, f"hydra.run.dir='{folder}'")
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "provenance.json"}


def test_a_run_that_diverges_has_its_page(tmp_path: Path) -> None:
    done = run(*FAST, "optimizer.lr=1e9", "optimizer.warmup=0", f"hydra.run.dir='{tmp_path}/run'")
    assert done.returncode == 2
    assert done.stderr.count("error: loss term 'distill' is") == 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Stopped before its end: loss term" in page
    assert page.rstrip().endswith("</html>")


def test_untypical_values_warn_and_run(tmp_path: Path) -> None:
    done = run("debug=fast", "teacher.momentum=0.5", "trainer.accelerator=cpu", f"hydra.run.dir='{tmp_path}/run'")
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "typical range" in line]
    assert len(warned) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_other_loggers_write_beside_the_csv(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run("debug=fast", f"logger={name}", "trainer.accelerator=cpu", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert (folder / "metrics.csv").stat().st_size > 0
    if name == "wandb":
        # offline: no account and no network is asked for
        assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
        # the report's panels are stored with it
        media = "offline-run-*/files/media"
        for kind, name in (
            ("images", "views*.png"),
            ("table", "embedding*.table.json"),
            ("table", "cost*.table.json"),
            ("html", "page*.html"),
        ):
            assert list((folder / "wandb").glob(f"{media}/{kind}/report/{name}")), kind
    else:
        assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
