"""The page of a run in a real browser: no error, nothing hidden, nothing wider than a phone, light and dark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.assembly import build_data, build_method
from selfdistill.config import check
from selfdistill.report import write_report
from selfdistill.report.pictures import make_pictures

pytestmark = pytest.mark.slow

SECTIONS = [
    *("Figures", "Curves", "Geometry", "Teacher", "Views and masks", "Nearest neighbours", "Embedding map"),
    *("Attention", "Cost", "Configuration", "Versions"),
]
SERIES = {
    "train/loss": 4.0,
    "train/a_term_with_a_long_name": 1.0,
    "val/knn": 0.5,
    "val/probe": 0.6,
    "teacher/momentum": 0.99,
    "temperature/student_temperature": 0.1,
    "optimizer/lr": 1e-4,
    "monitor/std": 0.5,
    "monitor/rank": 9.0,
    "monitor/prototype_entropy": 0.8,
    "monitor/prototype_sharpness": 0.3,
    "monitor/prototype_information": 0.2,
    "monitor/alignment": 0.3,
    "monitor/uniformity": -2.0,
    "monitor/teacher_age": 20.0,
    "monitor/teacher_distance": 0.1,
    "monitor/agreement": 0.9,
}
ALARM = {"kind": "dimensional", "step": 40, "since": 20, "line": "dimensional since step 20: few directions; mend: …"}
SIZES = {"student": 2**22, "teacher": 2**22, "optimizer": 2**23, "model_total": 2**24, "activations": 2**25}
COST = {
    "predicted": {
        "bytes": SIZES | {"peak": 2**26},
        "flops": {"student": 10**9, "backward": 2 * 10**9, "step": 4 * 10**9},
    },
    "measured": {"step_seconds": 0.02, "peak_bytes": 2**26, "peak_of": "process"},
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a page can show."""
    folder = tmp_path_factory.mktemp("run")
    checked = check("train", ["method=ibot_like", "teacher.momentum=0.5"])
    make_pictures(build_method(checked.config), build_data(checked.config), folder)
    checked.plain["run_dir"] = str(folder)
    (folder / "config.yaml").write_text(json.dumps(checked.plain))
    rows = [",".join(["step", *SERIES])]
    rows += [",".join([str(s), *(str(v * (1 + s / 200)) for v in SERIES.values())]) for s in range(0, 100, 20)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    summary = {
        "method": "ibot_like",
        "figures": {"trained": {"knn": 0.9, "one_shot": 0.5}, "raw_pixels": {"knn": 0.8, "one_shot": 0.4}},
        "collapse": "dimensional",
        "alarms": [ALARM],
        "seconds": {"train": 12.0, "data_wait": 1.0},
        "optimizer_steps": 80,
        "evaluates": "teacher",
        "cost": COST,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return write_report(folder)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_every_panel_is_seen(width: int, dark: bool, browser: Any, page: Path) -> None:
    found = browser.laid_out(page, width, dark)
    assert found.has_panels(SECTIONS)
    tiles = [box for kind, box in found.answer["figures"] if kind.startswith("tile")]
    charts = [box for kind, box in found.answer["figures"] if not kind.startswith("tile")]
    assert len(charts) == 16
    assert all(w > 300 and h > 150 for _, _, w, h in charts)
    assert len(tiles) > 60
    assert all(w == h >= 40 for _, _, w, h in tiles)
    assert found.seen([*charts, tiles[0], tiles[-1]])


def test_an_error_would_be_noticed(browser: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefined_name()</script>", encoding="utf-8")
    with pytest.raises(AssertionError, match="undefined_name is not defined"):
        browser.opened(broken, False, "--dump-dom")
