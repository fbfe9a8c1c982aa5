"""The median rule: a run behind the earlier ones ends, one that is not goes on."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from selfdistill.callbacks import MedianStop

# Values at epochs 0, 1, … of runs that ended; the third was stopped in its second epoch, the last one broke.
EARLIER = [[0.1, 0.5, 0.6, 0.7], [0.2, 0.4, 0.5, 0.6], [0.1, 0.2], [0.3, 0.6, 0.8, 0.9]]
BROKEN = [1.0, 1.0, 1.0, 1.0]


class Validated(BoringModel):
    """Validation k-NN as given, an epoch each."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/knn", self.values[self.current_epoch])


def epochs(values: list[float], sweep: Path, **settings: Any) -> tuple[int, MedianStop]:
    """How many are trained."""
    stop = MedianStop(sweep, **settings)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=len(values),
        limit_train_batches=1,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        enable_model_summary=False,
        callbacks=[stop],
        **quiet,
    )
    trainer.fit(Validated(values))
    return trainer.current_epoch, stop


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    for number, values in enumerate([*EARLIER, BROKEN]):
        status = "failed" if values is BROKEN else "finished"
        record = {"number": number, "status": status, "run": f"{number:03d}"}
        (tmp_path / "jobs" / f"{number:03d}.json").write_text(json.dumps(record))
        (tmp_path / record["run"]).mkdir()  # type: ignore[operator]
        rows = [row for epoch, value in enumerate(values) for row in (f"{epoch},{epoch},,2.0", f"{epoch},9,{value},")]
        text = "\n".join(["epoch,step,val/knn,train/loss", *rows, ""])
        (tmp_path / f"{number:03d}" / "metrics.csv").write_text(text)
    # proposed twice, run once
    (tmp_path / "jobs" / "005.json").write_text((tmp_path / "jobs" / "000.json").read_text())
    # the run itself has a folder and no record yet
    (tmp_path / "006").mkdir()
    return tmp_path


def test_behind_the_median_of_the_same_epoch(sweep: Path) -> None:
    # the medians of what the first four show: 0.15, 0.45, and of the three that go on 0.6
    medians = [statistics.median(run[epoch] for run in EARLIER if len(run) > epoch) for epoch in range(3)]
    assert medians == pytest.approx([0.15, 0.45, 0.6])
    trained, stop = epochs([0.16, 0.46, 0.59, 1.0], sweep, startup_trials=3, warmup_epochs=0)
    assert trained == 3
    assert stop.line == ("stopped in epoch 3: best validation k-NN 0.59, below 0.6, the median of 3 earlier runs there")
    assert epochs([0.16, 0.46, 0.6, 0.1], sweep, startup_trials=3, warmup_epochs=0)[1].line is None
    # its best counts, not the last
    assert epochs([0.16, 0.61, 0.1, 0.1], sweep, startup_trials=3, warmup_epochs=0)[0] == 4


@pytest.mark.parametrize(
    ("startup_trials", "warmup_epochs", "trained"),
    [(1, 0, 1), (4, 0, 1), (5, 0, 4), (4, 1, 2), (4, 2, 4), (3, 2, 3), (1, 3, 4)],
)
def test_enough_runs_and_epochs(startup_trials: int, warmup_epochs: int, trained: int, sweep: Path) -> None:
    behind = [0.0] * 4
    assert epochs(behind, sweep, startup_trials=startup_trials, warmup_epochs=warmup_epochs)[0] == trained


def test_its_best_is_kept_and_outside_of_a_sweep_nothing_is_stopped(sweep: Path, tmp_path: Path) -> None:
    stop = epochs([0.16, 0.46, 0.59, 1.0], sweep, startup_trials=3, warmup_epochs=0)[1]
    again = MedianStop(sweep)
    again.load_state_dict(stop.state_dict())
    assert again.best == pytest.approx(0.59)
    assert epochs([0.0] * 3, tmp_path / "elsewhere", startup_trials=1, warmup_epochs=0)[0] == 3
    with pytest.raises(ValueError, match=r"MedianStop\.startup_trials: 0 given, allowed is 1 or more"):
        MedianStop(sweep, startup_trials=0)
