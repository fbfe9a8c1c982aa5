"""The page of a run in a real browser: no error, nothing hidden, nothing wider than a phone, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
# What the page is asked once it is laid out; its answer goes to the document around it.
QUESTIONS = """<script>addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height].map(Math.round); };
  const text = document.querySelectorAll("svg text, figcaption, .look, h2, th");
  const answer = {
    inner: innerWidth, wide: document.documentElement.scrollWidth, high: document.documentElement.scrollHeight,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    sections: [...document.querySelectorAll("section")].map(s => [s.querySelector("h2").textContent, box(s)]),
    figures: [...document.querySelectorAll("figure")].map(f => [f.className, box(f.querySelector("svg"))]),
    outside: [...document.querySelectorAll("svg[role=img]:not(.tile svg) text")].filter(t => {
      const r = t.getBoundingClientRect(), s = t.closest("svg").getBoundingClientRect();
      return r.left < s.left - 1 || r.right > s.right + 1; }).map(t => t.textContent),
    small: [...text].filter(t => parseFloat(getComputedStyle(t).fontSize) < 10.5).map(t => t.textContent),
  };
  parent.postMessage(JSON.stringify(answer), "*");
});</script>"""
# A window is at least 500 pixels wide, a frame in it as wide as a phone.
AROUND = """<!DOCTYPE html><script>addEventListener("message", message => {
  const pre = document.createElement("pre"); pre.id = "answer"; pre.textContent = message.data;
  document.body.append(pre);
});</script>
<body style="margin: 0"><iframe src="asking.html" style="border: 0; width: %dpx; height: 9000px"></iframe>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail(
            "chromium is not on PATH; install the package chromium (apt-get install -y chromium)", pytrace=False
        )
    return found


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


def asked(chromium: str, page: Path, dark: bool, *more: str) -> str:
    """Standard output of a headless browser that has the page open; what its console says is an error."""
    line = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    line += ["--enable-logging=stderr", "--window-size=1300,9000"]
    line += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", *more, page.as_uri()]
    # a profile of its own: two browsers with one wait for each other
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line[1:1] = [f"--user-data-dir={profile}"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_every_panel_is_seen(width: int, dark: bool, chromium: str, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    asking = tmp_path / "asking.html"
    asking.write_text(text.replace("</body>", f"{QUESTIONS}</body>"), encoding="utf-8")
    around = tmp_path / "around.html"
    around.write_text(AROUND % width, encoding="utf-8")
    document = asked(chromium, around, dark, "--dump-dom", "--virtual-time-budget=5000")
    answer: dict[str, Any] = json.loads(unescape(re.findall(r'<pre id="answer">(.*?)</pre>', document)[0]))

    assert answer["inner"] == width
    assert answer["wide"] <= width
    assert [name for name, _ in answer["sections"]] == SECTIONS
    assert all(w > 300 and h > 40 for _, (_, _, w, h) in answer["sections"])
    tiles = [box for kind, box in answer["figures"] if kind.startswith("tile")]
    charts = [box for kind, box in answer["figures"] if not kind.startswith("tile")]
    assert len(charts) == 16
    assert all(w > 300 and h > 150 for _, _, w, h in charts)
    assert len(tiles) > 60
    assert all(w == h >= 40 for _, _, w, h in tiles)
    assert answer["outside"] == []
    assert answer["small"] == []
    light, other = (sum(map(int, re.findall(r"\d+", answer[part])[:3])) for part in ("paper", "ink"))
    assert (light < other) is dark

    picture = tmp_path / "page.png"
    asked(chromium, around, dark, f"--screenshot={picture}")
    shown = np.asarray(Image.open(picture).convert("L")).astype(int)
    for left, top, across, down in (*charts, tiles[0], tiles[-1]):
        part = shown[top : top + down, left : left + across]
        assert part.max() - part.min() > 60


def test_an_error_would_be_noticed(chromium: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefined_name()</script>", encoding="utf-8")
    with pytest.raises(AssertionError, match="undefined_name is not defined"):
        asked(chromium, broken, False, "--dump-dom")
