"""The page of a sweep in a real browser: no error, nothing hidden, nothing wider than a phone, light and dark."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from selfdistill.report import write_report
from selfdistill.report.sweep import Job, write_job

pytestmark = pytest.mark.slow

SECTIONS = ["Over seeds", "Runs", "What mattered", "Settings and figure", "Curves", "Not finished"]
SWEPT = ("method", "optimizer.weight_decay", "seed")
REFUSED, FAILED = 10, 11
COMMAND = "python -m src.train -m method=byol_like,simsiam_like,ema_teacher optimizer.weight_decay=1e-6,0.01 seed=0,1"


def leave_run(folder: Path, number: int, knn: float, points: int) -> None:
    """Files of a finished run."""
    folder.mkdir()
    trained = {"knn": knn - 0.01, "one_shot": 0.5}
    figures = {"trained": trained, "raw_pixels": {"knn": 0.9}}
    summary = {"validation_knn": knn, "figures": figures, "collapse": "dimensional" if number == 3 else None}
    summary |= {"seconds": {"train": 20.0 + number}, "optimizer_steps": 900}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = ["step,train/loss,val/knn,monitor/rank,monitor/std"]
    for step in range(0, 10 * points, 10):
        fallen = math.exp(-step / 300)
        lines.append(
            f"{step},{4 * fallen + number / 20},{knn - fallen / 4},{40 - 9 * fallen + number},{0.5 + number / 90}"
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(params=[90, 1], ids=["long", "of_one_epoch"], scope="module")
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three methods, two decays and two seeds, of which a job was refused and one failed."""
    folder = tmp_path_factory.mktemp("sweep")
    methods, decays = ("byol_like", "simsiam_like", "ema_teacher"), ("0.000001", "0.01")
    names = []
    for number, values in enumerate(product(methods, decays, ("0", "1"))):
        settings = dict(zip(SWEPT, values, strict=True))
        names.append(" ".join(f"{key}={value}" for key, value in settings.items()))
        if number == REFUSED:
            write_job(folder, Job(number, settings, "refused", "optimizer.weight_decay: 0.01 given, allowed is …"))
        elif number == FAILED:
            write_job(folder, Job(number, settings, "failed", "the loss is NaN; lower optimizer.lr", f"{number:03d}"))
        else:
            leave_run(folder / f"{number:03d}", number, 0.8 + 0.01 * (7 * number % 12), request.param)
            write_job(folder, Job(number, settings, "finished", "", f"{number:03d}"))
    about = {"command": COMMAND, "swept": SWEPT, "jobs": names}
    (folder / "sweep.json").write_text(json.dumps(about))
    return write_report(folder)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_every_panel_is_seen(width: int, dark: bool, browser: Any, page: Path) -> None:
    found = browser.laid_out(page, width, dark)
    assert found.has_panels(SECTIONS)
    coordinates, *curves = [box for _, box in found.answer["figures"]]
    assert coordinates[2] > 300
    assert len(curves) == 4
    assert all(w > 300 and h > 150 for _, _, w, h in curves)
    assert found.seen([coordinates, *curves])
    # inside the axes: lines, not only names
    assert found.seen([(x + w // 3, y + 10, w // 2, h - 60) for x, y, w, h in curves])
