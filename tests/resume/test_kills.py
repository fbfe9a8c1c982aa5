"""Killed with SIGKILL in every phase of a run, continued, and in the end bit for bit the uninterrupted one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from killing import PHASES, SHORT, Kill, differences, said, train

EARLY: list[Kill] = [
    ("forward", 2),  # half of an accumulation, no checkpoint yet
    ("between teacher and commit", 2),
    ("checkpoint write", 2),
    ("metrics write", 2),
    ("between two renames", 2),
    ("between best and last", 1),
]
LATE: list[Kill] = [
    ("backward", 3),
    ("optimizer step", 1),
    ("before the teacher", 2),
    ("validation", 1),
    ("between epochs", 1),
    ("forward", 4),
    ("checkpoint write", 1),
    ("checkpoint write", 2),
    ("backward", 1),  # of the last step: Lightning does not start an epoch again within which it goes on
    ("final figures", 1),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(["method=dino_like", *SHORT], folder) == 0, said(folder)
    return folder


def killed_and_continued(overrides: list[str], folder: Path, kills: list[Kill]) -> None:
    """The same command again and again in the same folder, to its end."""
    for kill in kills:
        assert train([*overrides, "ckpt_path=auto"], folder, kill, pages=1.0) == -9, (kill, said(folder))
        assert not (folder / "summary.json").exists()
        # written where an epoch has ended
        if (folder / "checkpoints" / "best.ckpt").exists():
            page = (folder / "report.html").read_text(encoding="utf-8")
            assert (page[:9], page[-8:]) == ("<!DOCTYPE", "</html>\n"), kill
    assert train([*overrides, "ckpt_path=auto"], folder) == 0, said(folder)


def test_killed_six_times(whole: Path, tmp_path: Path) -> None:
    killed_and_continued(["method=dino_like", *SHORT], tmp_path / "run", EARLY)
    assert differences(whole, tmp_path / "run") == []
    assert not list((tmp_path / "run").rglob("part-*"))


@pytest.mark.slow
@pytest.mark.parametrize("extra", [["method=moco_like", "callbacks=probe"], ["method=swav_like"], ["method=ibot_like"]])
def test_killed_ten_times(extra: list[str], tmp_path: Path) -> None:
    assert train([*extra, *SHORT], tmp_path / "whole") == 0, said(tmp_path / "whole")
    killed_and_continued([*extra, *SHORT], tmp_path / "run", LATE)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_every_phase_is_tried() -> None:
    assert {phase for phase, _ in EARLY + LATE} == set(PHASES)


def test_one_that_had_ended_is_continued_as_a_whole_run(whole: Path, tmp_path: Path) -> None:
    """Nothing is left to train, yet the new folder can be evaluated and continued as any other."""
    last = whole / "checkpoints" / "last.ckpt"
    assert train(["method=dino_like", *SHORT, f"ckpt_path='{whole}'"], tmp_path) == 0, said(tmp_path)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == last.read_bytes()


def test_continued_in_another_folder_from_the_one_before(whole: Path, tmp_path: Path) -> None:
    """The newest checkpoint cut in half: the one before is used and named; history and best score come along."""
    first, second = tmp_path / "first", tmp_path / "second"
    short = ["method=dino_like", *SHORT]
    assert train(short, first, ("forward", 10)) == -9
    last, previous = first / "checkpoints" / "last.ckpt", first / "checkpoints" / "previous.ckpt"
    best = torch.load(first / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    steps = [torch.load(path, weights_only=True)["global_step"] for path in (last, previous)]
    assert [best, *steps] == [3, 5, 4]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    before = {path.name: path.read_bytes() for path in first.rglob("*") if path.is_file()}

    assert train([*short, f"ckpt_path='{first}'"], second) == 0, said(second)
    warned = [line for line in said(second).splitlines() if "warning" in line]
    assert len(warned) == 1
    assert f"{str(last)!r} given, not a readable checkpoint" in warned[0]
    assert f"continuing from the one before it, {previous}, step 4" in warned[0]
    assert differences(whole, second) == []
    assert {path.name: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before

    with open(second / "metrics.csv", encoding="utf-8", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert min(steps) == 0


def test_a_run_at_its_end_is_not_made_again(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert train(["method=dino_like", *SHORT, "ckpt_path=auto"], whole) == 0
    assert f"is finished; to train longer, in another folder: ckpt_path={whole} trainer.max_epochs=" in said(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
