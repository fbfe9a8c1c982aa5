"""Ends a trial of a search that is behind the others."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import lightning as L

from selfdistill.metrics_csv import NAME

MONITOR = "val/knn"


class MedianStop(L.Callback):
    """Stops a run of a sweep whose best validation k-NN is below the median of the earlier runs at the same epoch.

    The median stopping rule of Vizier (Golovin et al. 2017, §3.5), with the values at an epoch where Vizier takes their
    running means, as Optuna's ``MedianPruner`` does. That one cannot be asked: the runs of a search are processes of
    their own, and Hydra's sweeper keeps the trials to itself. The earlier runs are those that the sweep's records name
    as finished, stopped ones among them; outside of a sweep nothing is stopped.

    Args:
        sweep: the sweep's folder.
        startup_trials: values of earlier runs at the epoch that it takes to judge.
        warmup_epochs: epochs before the first judgement.

    Attributes:
        line: why the run was stopped; None where it was not.

    Raises:
        ValueError: a count out of range.
    """

    def __init__(self, sweep: str | Path, startup_trials: int = 5, warmup_epochs: int = 5) -> None:
        for name, value, least in (("startup_trials", startup_trials, 1), ("warmup_epochs", warmup_epochs, 0)):
            if value < least:
                raise ValueError(f"MedianStop.{name}: {value} given, allowed is {least} or more")
        self.sweep = Path(sweep)
        self.startup_trials = startup_trials
        self.warmup_epochs = warmup_epochs
        self.best: float | None = None
        self.line: str | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(MONITOR)
        if trainer.sanity_checking or value is None:
            return
        self.best = max(float(value), float(value) if self.best is None else self.best)
        if self.warmup_epochs <= trainer.current_epoch != (trainer.max_epochs or 0) - 1:
            # one process looks: the records may change between two looks
            line = self._judged(self.best, trainer.current_epoch) if trainer.is_global_zero else None
            self.line = trainer.strategy.broadcast(line)
            trainer.should_stop |= self.line is not None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _judged(self, best: float, epoch: int) -> str | None:
        found = (value_at(run / NAME, epoch) for run in earlier_runs(self.sweep))
        values = [value for value in found if value is not None]
        if len(values) < self.startup_trials or best >= statistics.median(values):
            return None
        return (
            f"stopped in epoch {epoch + 1}: best validation k-NN {best:.4g}, "
            f"below {statistics.median(values):.4g}, the median of {len(values)} earlier runs there"
        )


def earlier_runs(sweep: Path) -> list[Path]:
    """The folders of the runs that the records of ``sweep`` name as finished."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(sweep.glob("jobs/[0-9]*.json"))]
    # a search may propose the same values twice, which is one run
    names = dict.fromkeys(record["run"] for record in records if record["status"] == "finished")
    return [sweep / name for name in names]


def value_at(metrics: Path, epoch: int) -> float | None:
    """Validation k-NN at the end of ``epoch``, from 0; None where it was not measured then."""
    if not metrics.is_file():
        return None
    with open(metrics, encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get(MONITOR) and row.get("epoch") == str(epoch)]
    return float(rows[-1][MONITOR]) if rows else None
