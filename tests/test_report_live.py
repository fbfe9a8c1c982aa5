"""The page of a run that goes on, and what it says of where a run comes from."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning.pytorch.utilities import rank_zero_only

from selfdistill.provenance import provenance
from selfdistill.report import ending, write_report
from selfdistill.report.plane import plane
from selfdistill.report.refresh import RefreshReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(json.dumps({"seed": 0, "run_dir": str(tmp_path)}))
    return tmp_path


def test_pages_take_no_more_than_their_share(folder: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.25  # what a page takes here, and each look at the clock
        return now[0]

    refresh = RefreshReport(folder, share=0.01, clock=clock)
    trainer = cast(Any, SimpleNamespace(loggers=[], callbacks=[]))
    refresh.on_train_start(trainer, cast(Any, None))
    written = []
    for epoch in range(200):
        now[0] += 1.0
        (folder / "report.html").unlink(missing_ok=True)
        refresh.on_train_epoch_end(trainer, cast(Any, None))
        if (folder / "report.html").exists():
            written.append(epoch)
    # 1.25 s an epoch: the first once 5 s are over, the others 25 s apart
    assert written[0] == 3
    assert {b - a for a, b in pairwise(written)} <= {20, 21}


def test_a_long_epoch_has_its_pages_under_the_same_share(folder: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.25
        return now[0]

    refresh = RefreshReport(folder, share=0.01, clock=clock)
    trainer = cast(Any, SimpleNamespace(loggers=[], callbacks=[]))
    refresh.on_train_start(trainer, cast(Any, None))
    written = []
    for step in range(200):
        now[0] += 1.0
        refresh.on_train_batch_end(trainer, *cast(Any, (None, None, None)), step)
        if (folder / "report.html").exists():
            written.append(step)
            (folder / "report.html").unlink()
            # an epoch that ends here finds the budget spent
            refresh.on_train_epoch_end(trainer, cast(Any, None))
            assert not (folder / "report.html").exists()
    # as of epochs of this length
    assert written[0] == 3
    assert {b - a for a, b in pairwise(written)} <= {20, 21}


def test_a_step_without_a_page_looks_at_nothing_but_the_clock(folder: Path) -> None:
    refresh = RefreshReport(folder, clock=iter((0.0, 1.0, 2.0)).__next__)
    # whatever it looked at would raise
    nothing = cast(Any, (object(), object(), object(), object()))
    refresh.on_train_start(*nothing[:2])
    refresh.on_train_batch_end(*nothing, 0)
    refresh.on_train_batch_end(*nothing, 1)
    assert list(folder.iterdir()) == [folder / "config.yaml"]


def test_other_processes_write_no_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh = RefreshReport(folder, clock=iter((0.0, 10.0, 11.0)).__next__)
    trainer = cast(Any, SimpleNamespace(loggers=[], callbacks=[]))
    refresh.on_train_start(trainer, cast(Any, None))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(rank_zero_only, "rank", 1)
        refresh.on_train_batch_end(trainer, *cast(Any, (None, None, None)), 0)
        refresh.on_train_epoch_end(trainer, cast(Any, None))
    assert not (folder / "report.html").exists()
    # the clock was not even looked at: at 10 s the page is due
    refresh.on_train_batch_end(trainer, *cast(Any, (None, None, None)), 1)
    assert (folder / "report.html").exists()


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    refresh = RefreshReport(tmp_path / "gone", clock=iter((0.0, 10.0, 11.0)).__next__)
    trainer = cast(Any, SimpleNamespace(loggers=[], callbacks=[]))
    refresh.on_train_start(trainer, cast(Any, None))
    with pytest.warns(UserWarning, match=r"report\.html was not written"):
        refresh.on_train_epoch_end(trainer, cast(Any, None))


@pytest.mark.parametrize("part", ["make_pictures", "write_report", "log_panels"])
def test_a_last_page_that_fails_is_one_line(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no\nroom")

    for name in ("make_pictures", "write_report", "log_panels"):
        monkeypatch.setattr(ending, name, fails if name == part else lambda *_: tmp_path / "report.html")
    said = ending.last_report(cast(Any, None), cast(Any, None), tmp_path, [])
    assert (
        said == f"warning: not whole (RuntimeError: no room); python -m src.report run={tmp_path} writes the page again"
    )


def test_where_a_run_comes_from_is_shown(folder: Path) -> None:
    facts = provenance()
    assert {"selfdistill", "Python", "torch", "lightning"} <= facts["versions"].keys()
    facts |= {"command": "train <me>", "git": {"commit": "abc123", "changed": True}}
    (folder / "provenance.json").write_text(json.dumps(facts))
    text = write_report(folder).read_text(encoding="utf-8")
    for said in ("train &lt;me&gt;", "abc123, with changes", facts["hardware"]["system"]):
        assert said in text
    assert "of the installation that made this page" not in text


def test_below_raw_pixels_is_said(folder: Path) -> None:
    figures = {"trained": {"knn": 0.5}, "raw_pixels": {"knn": 0.6}, "initial": {"knn": 0.4}}
    (folder / "summary.json").write_text(json.dumps({"figures": figures}))
    (folder / "metrics.csv").write_text("step,monitor/std\n0,1.0\n")
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Healthy, but still below raw pixels (0.600) with a k-NN of 0.500: no collapse" in text


def test_the_plane_needs_two_steps_that_have_both() -> None:
    assert plane([(0, 1.0)], [(0, -1.0)]) == ""
    assert plane([(0, 1.0), (5, 0.5)], [(1, -1.0)]) == ""
    assert "step 5: alignment 0.5, uniformity -2" in plane([(0, 1.0), (5, 0.5)], [(0, -1.0), (5, -2.0)])
