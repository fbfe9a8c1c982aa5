"""``--help`` is complete, right and quick: every group, commands that compose, no torch."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill.config import CONF, check
from selfdistill.config.help import COMMANDS, GROUPS, help_text

ROOT = Path(__file__).parents[2]
BEHIND = {"scale", "hydra", "__pycache__"}  # chosen by data and method, or Hydra's own
PLACES = {"<folder of images>": "tests", "<folder>": "tests", "<new folder>": "packed", "<run>": "tests"}


def test_every_group_and_choice_is_named() -> None:
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - BEHIND
    assert groups == set(GROUPS)
    shown = help_text("train") + help_text("evaluate")
    for group in groups:
        for file in (CONF / group).glob("*.yaml"):
            assert file.stem in shown, f"{group}={file.stem}"


def test_ten_commands_of_each_kind_compose(tmp_path: Path) -> None:
    assert len(COMMANDS["train"]) == 10
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    for name, commands in COMMANDS.items():
        for command, _ in commands:
            for place, stands in PLACES.items():
                command = command.replace(place, str(tmp_path) if "checkpoints" in command else stands)
            given = shlex.split(command.replace("<a file of others>", "file"))[3:]
            if "--config-path" in given or "-m" in given:
                continue  # tests/test_train.py repeats a run; sweeps have their own
            check(name, given)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_fits_a_terminal_and_names_every_setting_of_the_command(name: str) -> None:
    text = help_text(name)
    assert all(len(line) <= 150 for line in text.splitlines())
    assert f"python -m src.{name}" in text
    assert "???" not in text


def test_the_command_prints_it_without_torch() -> None:
    code = "import sys, runpy; sys.argv = ['train', '--help']; runpy.run_module('src.train', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{help_text('train')}\nFalse\n"


def test_the_missions_ranges_are_swept() -> None:
    import yaml

    grid = yaml.safe_load((CONF / "hparams_search" / "mission.yaml").read_text(encoding="utf-8"))
    params = grid["hydra"]["sweeper"]["params"]
    ends = {key: [float(v) for v in str(text).split(",")] for key, text in params.items()}
    assert {key: (min(values), max(values)) for key, values in ends.items()} == {
        "teacher.momentum": (0.99, 0.9999),
        "optimizer.lr": (1e-4, 1e-3),
        "objective.contrastive.temperature": (0.1, 1.0),
        "objective.weight": (0.5, 2.0),
    }
    for values in zip(*(text.split(",")[:2] for text in params.values()), strict=True):
        job = [f"{key}={value}" for key, value in zip(params, values, strict=True)]
        assert check("train", ["hparams_search=mission", *job]).warnings == []
