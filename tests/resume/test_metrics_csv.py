"""metrics.csv over a resume, cut anywhere, and on a full disk."""

from __future__ import annotations

import csv
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from selfdistill.metrics_csv import MetricsLogger, continue_metrics


def logger(folder: Path) -> MetricsLogger:
    return MetricsLogger(str(folder), name="", version="")


def logged(folder: Path, *rows: tuple[int, dict[str, float]]) -> Path:
    writer = logger(folder)
    for step, row in rows:
        writer.log_metrics(row, step=step)
        writer.save()
    return folder / "metrics.csv"


def rows(file: Path) -> list[dict[str, float]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]


def test_goes_on_in_the_file_and_takes_new_columns(tmp_path: Path) -> None:
    file = logged(tmp_path, (0, {"b": 1.0}))
    logged(tmp_path, (1, {"b": 2.0}), (1, {"a": 3.0}))
    assert rows(file) == [{"b": 1.0, "step": 0}, {"b": 2.0, "step": 1}, {"a": 3.0, "step": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_new_column_leaves_no_moment_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = logger(tmp_path)
    writer.log_metrics({"a": 1.0}, step=0)
    writer.save()
    writer.log_metrics({"b": 2.0}, step=1)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        writer.save()
    assert rows(tmp_path / "metrics.csv") == [{"a": 1.0, "step": 0}]


@pytest.mark.parametrize("cut", range(1, 12))
def test_what_came_before_the_checkpoint_wherever_the_file_was_cut(cut: int, tmp_path: Path) -> None:
    old = logged(tmp_path / "old", *((step, {"a": float(step)}) for step in range(12, 16)))
    os.truncate(old, old.stat().st_size - cut)
    continue_metrics(old, tmp_path / "new.csv", step=14)
    assert rows(tmp_path / "new.csv") == [{"a": 12.0, "step": 12}, {"a": 13.0, "step": 13}]


def test_the_row_that_is_logged_again(tmp_path: Path) -> None:
    old = logged(tmp_path, (0, {"loss": 0.0, "lr": 1.0}), (1, {"rank": 5.0}), (1, {"loss": 1.0, "lr": 1.0}))
    continue_metrics(old, old, step=2, later=["loss", "lr"])
    assert rows(old) == [{"loss": 0.0, "lr": 1.0, "step": 0}, {"rank": 5.0, "step": 1}]
    continue_metrics(old, old, step=0)
    assert not old.exists()
    continue_metrics(old, old, step=3)
    assert not old.exists()


def test_a_full_disk_keeps_the_rows_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = logger(tmp_path)
    writer.log_metrics({"a": 1.0}, step=0)
    writer.save()
    size = (tmp_path / "metrics.csv").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, hard))
    try:
        for step in (1, 2):
            writer.log_metrics({"a": 2.0}, step=step)
            writer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.csv").stat().st_size == size
    assert capsys.readouterr().err == "warning: metrics.csv cannot be written (File too large); it is tried again\n"
    writer.save()
    assert rows(tmp_path / "metrics.csv") == [{"a": float(1 + (step > 0)), "step": step} for step in range(3)]
