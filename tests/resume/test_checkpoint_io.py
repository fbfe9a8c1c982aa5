"""Checkpoints on a disk that is full or comes to harm: there is always a whole one, and nothing else is believed."""

from __future__ import annotations

import os
import pickle
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import SHORT, differences, said, train

from selfdistill.callbacks import BestCheckpoint
from selfdistill.checkpoint import read_checkpoint
from selfdistill.checkpoint_io import AtomicCheckpointIO
from selfdistill.config import UserError
from selfdistill.resume import Continued, carry_over, find


def stored(step: int) -> dict[str, Any]:
    weights = torch.randn(400, generator=torch.Generator().manual_seed(step))
    about = {"method": "BYOL", "version": "0.1.0", "config": {"seed": 0}}
    state = {"student.weight": weights, "count": torch.tensor(step)}
    return {"selfdistill": about, "state_dict": state, "epoch": 0, "global_step": step, "callbacks": {}}


def written(run: Path, *steps: int, name: str = "last.ckpt") -> Path:
    for step in steps:
        AtomicCheckpointIO().save_checkpoint(stored(step), run / "checkpoints" / name)
    return run / "checkpoints" / name


@contextmanager
def full(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_the_one_before_is_kept_without_a_copy(tmp_path: Path) -> None:
    last = written(tmp_path, 1)
    inode = last.stat().st_ino
    written(tmp_path, 2)
    previous = last.with_name("previous.ckpt")
    assert (step_of(last), step_of(previous)) == (2, 1)
    assert previous.stat().st_ino == inode
    written(tmp_path, 3)
    written(tmp_path, 3, 4, name="best.ckpt")
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert (step_of(last), step_of(previous)) == (3, 2)


def test_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    last = written(tmp_path, 1, 2)
    assert (step_of(last), step_of(last.with_name("previous.ckpt"))) == (2, 1)


@pytest.mark.parametrize("size", [0, 700, 2000])
def test_a_full_disk_keeps_the_last_good_one(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, writer = written(tmp_path, 1), AtomicCheckpointIO()
    with full(size):
        writer.save_checkpoint(stored(2), last)
    assert step_of(last) == 1
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    said = capsys.readouterr().err
    assert said == f"warning: {last} was not written (File too large); the last good one stays, going on\n"
    assert writer.failed == {last: "File too large"}
    writer.save_checkpoint(stored(3), last)
    assert step_of(last) == 3
    assert writer.failed == {}


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        AtomicCheckpointIO().save_checkpoint({"a": lambda: None}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_on_a_full_disk_trains_on_says_so_and_can_be_continued(tmp_path: Path) -> None:
    command = ("method=byol_like", *SHORT)
    assert train(command, tmp_path / "whole") == 0
    run = tmp_path / "run"
    assert train(command, run, full_from=3) == 2, said(run)
    assert step_of(run / "checkpoints" / "last.ckpt") == 2
    error = said(run).splitlines()[-1]
    assert error.startswith(f"error: hydra.run.dir: {run} cannot be written (File too large)")
    assert "Traceback" not in said(run)
    assert train([*command, "ckpt_path=auto"], run) == 0, said(run)
    assert differences(tmp_path / "whole", run) == []


def test_what_torch_would_believe_is_refused(tmp_path: Path) -> None:
    """A bit of a weight flipped: ``torch.load`` has no objection."""
    last = written(tmp_path, 1)
    data = bytearray(last.read_bytes())
    weights = stored(1)["state_dict"]["student.weight"].numpy().tobytes()
    data[data.index(weights[:64]) + 100] ^= 1
    last.write_bytes(data)
    assert torch.load(last, weights_only=True)["global_step"] == 1
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint("ckpt_path", str(last))


def test_flipped_bits_are_refused_or_do_no_harm(tmp_path: Path) -> None:
    last = written(tmp_path, 1)
    data, dice, refused = last.read_bytes(), random.Random(0), 0
    whole = read_checkpoint("ckpt_path", str(last))["state_dict"]["student.weight"].clone()
    for _ in range(300):
        damaged = bytearray(data)
        damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        last.write_bytes(damaged)
        try:
            read = read_checkpoint("ckpt_path", str(last))
        except UserError:
            refused += 1
        else:
            assert torch.equal(read["state_dict"]["student.weight"], whole)
            assert read["global_step"] == 1
    assert refused > 150


def test_truncated_at_any_length(tmp_path: Path) -> None:
    last = written(tmp_path, 1, 2)
    data = last.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        last.write_bytes(data[:length])
        found = find(str(tmp_path), tmp_path)
        assert found is not None
        assert (found.path.name, found.step) == ("previous.ckpt", 1)


def test_which_one_is_used_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "none"
    assert find("auto", elsewhere) is None
    last = written(run, 1, 2)
    for given in (str(run), str(last), "auto"):
        found = find(given, run)
        assert found is not None
        assert (found.path, found.step, found.folder) == (last, 2, run)
    assert capsys.readouterr().err == ""
    previous = last.with_name("previous.ckpt")
    last.unlink()  # killed between two renames where there are no hard links
    found = find(str(run), elsewhere)
    assert found is not None
    assert found.path == previous
    assert f"last.ckpt is missing; continuing from the one before it, {previous}, step 1" in capsys.readouterr().err
    last.write_bytes(b"")
    assert find(str(last), elsewhere) is not None
    assert f"continuing from the one before it, {previous}, step 1" in capsys.readouterr().err
    previous.write_bytes(b"")
    with pytest.raises(UserError, match=r"last.ckpt' given, not a readable checkpoint.*; previous.ckpt neither"):
        find("auto", run)
    with pytest.raises(UserError, match="a folder without checkpoints/last.ckpt"):
        find(str(tmp_path), run)


def test_a_damaged_one_never_takes_the_place_of_the_whole_one(tmp_path: Path) -> None:
    """Continued in place from the one before, and killed at the first save: it is still there."""
    last = written(tmp_path, 1, 2)
    last.write_bytes(last.read_bytes()[:100])
    found = find("auto", tmp_path)
    assert found is not None
    carry_over(found, tmp_path)
    assert {path.name for path in last.parent.iterdir()} == {"previous.ckpt", "damaged.ckpt"}
    written(tmp_path, 3)
    assert (step_of(last), step_of(last.with_name("previous.ckpt"))) == (3, 1)


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("kind", ["inside", "torch", "old torch", "pickle"])
def test_nothing_in_a_foreign_file_is_run(kind: str, tmp_path: Path) -> None:
    file, touched = tmp_path / "foreign.ckpt", tmp_path / "touched"
    if kind == "inside":
        torch.save(stored(1) | {"callbacks": {"x": Evil(touched)}}, file)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(Evil(touched)))
    else:
        torch.save(Evil(touched), file, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(UserError) as refused:
        find(str(file), tmp_path)
    answer = "not a readable checkpoint: damaged, or something else"
    assert str(refused.value) == f"ckpt_path: {str(file)!r} given, {answer}"
    assert not touched.exists()
    pickle.loads(pickle.dumps(Evil(touched)))  # it would have
    assert touched.exists()


@pytest.mark.parametrize("lacks", ["epoch", "global_step", "state_dict", "callbacks"])
def test_weights_alone_continue_nothing(lacks: str, tmp_path: Path) -> None:
    torch.save({key: value for key, value in stored(1).items() if key != lacks}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=f"it has no {lacks}; nothing to continue"):
        find(str(tmp_path / "a.ckpt"), tmp_path)


def test_the_best_score_goes_with_its_file(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    last, best = written(old, 9), written(old, 5, name="best.ckpt")
    score = torch.tensor(0.9)
    before = BestCheckpoint(dirpath=best.parent, filename="best", monitor="val/knn", mode="max")
    before.best_model_path = before.kth_best_model_path = str(best)
    before.best_k_models, before.best_model_score, before.kth_value = {str(best): score}, score, score

    carry_over(Continued(last, stored(9)), new)
    after = BestCheckpoint(dirpath=new / "checkpoints", filename="best", monitor="val/knn", mode="max")
    after.load_state_dict(before.state_dict())
    assert step_of(new / "checkpoints" / "best.ckpt") == 5
    assert after.best_model_path == str(new / "checkpoints" / "best.ckpt")
    assert after.best_k_models == {after.best_model_path: score}
    assert after.best_model_score == score


def test_a_best_one_of_later_is_made_again(tmp_path: Path) -> None:
    last = written(tmp_path / "old", 4)
    written(tmp_path / "old", 5, name="best.ckpt")
    carry_over(Continued(last, stored(4)), tmp_path / "new")
    assert not (tmp_path / "new" / "checkpoints").exists()
