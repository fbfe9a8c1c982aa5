"""``metrics.csv``: whole at any moment but for its last line, and continued where there is one already."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from selfdistill.files import whole_file

NAME = ExperimentWriter.NAME_METRICS_FILE


class MetricsLogger(CSVLogger):
    """Lightning's CSVLogger, which goes on in the file that it finds and replaces it whole where columns are new.

    Lightning's own deletes the file of an earlier part of the run, and has none for a moment whenever a metric appears.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    _told = False

    def save(self) -> None:
        size = os.path.getsize(self.metrics_file_path) if os.path.isfile(self.metrics_file_path) else 0
        try:
            super().save()
        except OSError as error:
            # a full disk: the rows stay in memory, and what was written of them goes
            if os.path.isfile(self.metrics_file_path) and os.path.getsize(self.metrics_file_path) > size:
                os.truncate(self.metrics_file_path, size)
            if not self._told:
                self._told = True
                print(f"warning: {NAME} cannot be written ({error.strerror}); it is tried again", file=sys.stderr)

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        _write(Path(self.metrics_file_path), fieldnames, rows)


def continue_metrics(source: Path, target: Path, *, step: int, later: Collection[str] = ()) -> None:
    """Make ``target`` the rows of ``source`` from before ``step``; where there are none, there is no ``target``.

    Args:
        source: ``metrics.csv`` of the part that is continued, perhaps cut within its last line, perhaps missing.
        target: that of the part that continues, perhaps the same file.
        step: optimizer steps that the part before has taken; rows are numbered from 0.
        later: columns that the continued run logs again for its first row, which is left out.
    """
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    if source.is_file():
        with open(source, encoding="utf-8", newline="") as file:
            lines = file.readlines()
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        reader = csv.DictReader(lines)
        names = list(reader.fieldnames or ())
        rows = [row for row in reader if not _again(row, step, later)]
    if rows:
        _write(target, names, rows)
    else:
        target.unlink(missing_ok=True)


def _again(row: dict[str, Any], step: int, later: Collection[str]) -> bool:
    try:
        at = int(row["step"])
    except (KeyError, TypeError, ValueError):
        return True
    return at >= step or (at == step - 1 and bool(later) and all(row.get(name) for name in later))


def _write(path: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
