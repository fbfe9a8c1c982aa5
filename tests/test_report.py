"""The page of a run: what stands on it, what is left out, that it is whole and fetches nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from selfdistill.config import CONF, UserError, check
from selfdistill.report import write_report
from selfdistill.report.charts import Mark, line_chart
from selfdistill.report.page import page
from selfdistill.report.read import read_run

ROOT = Path(__file__).parents[1]
VOID = {"meta", "br", "hr", "img", "link", "input"}
STEPS = (0, 20, 40, 60)
STALE = {
    "kind": "teacher_stale",
    "step": 40,
    "since": 20,
    "line": "teacher_stale since step 20: the teacher is old; what usually mends it: a lower <momentum>",
}
FIGURES = {
    "trained": {"knn": 0.9, "one_shot": 0.5},
    "raw_pixels": {"knn": 0.8, "one_shot": 0.4},
    "initial": {"knn": 0.7, "one_shot": 0.3},
}
SUMMARY: dict[str, Any] = {
    "method": "byol_like",
    "figures": FIGURES,
    "split": "test",
    "collapse": None,
    "alarms": [],
    "mends": [],
    "seconds": {"train": 12.0},
    "optimizer_steps": 80,
    "evaluates": "student",
}
SERIES = {
    "train/loss": (4.0, 3.0, 2.0, 1.0),
    "train/<extra>": (0.5, 0.4, 0.3, 0.2),
    "val/knn": (0.5, 0.6, 0.7, 0.8),
    "teacher/momentum": (0.9, 0.9, 0.9, 0.9),
    "optimizer/lr": (0.1, 0.2, 0.1, 0.0),
    "monitor/std": (0.5, 0.4, 0.3, 0.2),
    "monitor/rank": (9.0, 8.0, 7.0, 6.0),
    "monitor/teacher_age": (0.0, 9.0, 9.0, 9.0),
}


class Elements(HTMLParser):
    """Open elements, all attributes, and whether every end tag ends the element that was opened last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.balanced = True
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.balanced &= bool(self.open) and self.open.pop() == tag


def make(folder: Path, summary: dict[str, Any] | None, series: dict[str, tuple[float, ...]], **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    # JSON is YAML
    (folder / "config.yaml").write_text(json.dumps({"seed": 3, "run_dir": str(folder), **config}))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if series:
        lines = [",".join(["epoch", "step", *series])]
        # the loggers write a row for each call, with nothing where it logged nothing
        for name, values in series.items():
            for step, value in zip(STEPS, values, strict=True):
                lines.append(",".join(["", str(step), *(str(value) if name == n else "" for n in series)]))
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return write_report(folder).read_text(encoding="utf-8")


def titles(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def captions(text: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", text)


def test_the_page_is_whole_in_order_and_fetches_nothing(tmp_path: Path) -> None:
    text = make(tmp_path / "run", {**SUMMARY, "alarms": [STALE], "collapse": "teacher_stale"}, SERIES)
    page = Elements(text)
    assert page.balanced
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.seen}
    assert not [names for _, names in page.seen if {"src", "href", "srcset", "data"} & names.keys()]
    assert not re.search(r"http|url\(|@import", text)
    assert titles(text) == ["Figures", "Curves", "Geometry", "Teacher", "Cost", "Configuration", "Versions"]
    assert captions(text) == [
        "Training loss",
        "Validation accuracy",
        "Teacher momentum",
        "Learning rate",
        "Spread",
        "Effective rank",
        "Age",
    ]
    figures = [names for tag, names in page.seen if tag == "svg"]
    assert all("optimizer step" in (names["aria-label"] or "") for names in figures)
    assert [path.name for path in tmp_path.glob("run/*.html")] == ["report.html"]
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text
    assert "150 ms" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "Healthy: no collapse and no stale teacher seen."),
        ({"alarms": [STALE]}, "Healthy at the end; seen on the way and over again: stale teacher since step 20."),
        (
            {"alarms": [STALE], "collapse": "teacher_stale"},
            "Stale teacher since step 20: the teacher is old; what usually mends it: a lower &lt;momentum&gt;.",
        ),
        ({"mends": ["went <back>"]}, "went &lt;back&gt;"),
    ],
)
def test_the_verdict_is_one_sentence(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    text = make(tmp_path, SUMMARY | change, SERIES)
    assert said in text[text.index('class="verdict') : text.index("<h2>")]


def test_alarms_stand_where_they_fell(tmp_path: Path) -> None:
    text = make(tmp_path, {**SUMMARY, "alarms": [STALE]}, SERIES)
    for caption, marked in (("Spread", 1), ("Effective rank", 1), ("Age", 1), ("Learning rate", 0)):
        figure = text[text.index(f"<figcaption>{caption}") :].partition("</figure>")[0]
        posts = re.findall(r'class="mark"><title>[^<]*</title><line x1="([\d.]+)" x2="([\d.]+)"', figure)
        assert len(posts) == marked
        way = re.findall(r'<polyline points="([^"]*)"', figure)[0].split()
        for left, right in posts:
            assert left == right == way[STEPS.index(40)].split(",")[0]


def test_a_line_lies_where_its_values_are() -> None:
    svg = line_chart("Loss", "nats", {"a": [(0, 0.0), (50, 10.0), (100, 5.0)]})
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'<polyline points="([^"]*)"', svg)[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.21)
    # the grid's line of a value is at the height of a point with that value
    grid = dict(re.findall(r'y1="([\d.]+)" y2="[\d.]+"/><text class="tick"[^>]*>([^<]*)<', svg))
    heights = {said: float(height) for height, said in grid.items()}
    assert heights["0"] == y0
    assert heights["10"] == y1


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-9, 2e-9], [-1e6, 1e6], [0.99991, 0.99999]])
def test_any_range_has_ticks_inside_the_picture(values: list[float]) -> None:
    svg = line_chart("t", "u", {"a": [(float(step), value) for step, value in enumerate(values)]}, [Mark(0, "m", "m")])
    heights = [float(y) for y in re.findall(r'class="grid"[^>]* y1="([\d.]+)"', svg)]
    said = re.findall(r'text-anchor="end"[^>]*>([^<]*)<', svg)
    assert 2 <= len(heights) <= 8
    assert len(set(said)) == len(said)
    bottom = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', svg)[0])
    assert all(0 < height < bottom for height in heights)


def test_what_a_step_takes_stands_beside_what_was_measured(tmp_path: Path) -> None:
    predicted = {"bytes": {"student": 2**20, "state": 0, "model_total": 3 * 2**20}, "flops": {"step": 5 * 10**9}}
    measured = {"step_seconds": 0.5, "peak_bytes": None, "peak_of": None}
    text = make(tmp_path, SUMMARY | {"cost": {"predicted": predicted, "measured": measured}}, {})
    rows = dict(re.findall(r"<th scope=row>(.*?)</th><td>(.*?)</td>", text))
    assert rows["student"] == "1.00 MiB"
    assert rows["<b>= M<sub>model</sub> + M<sub>optimizer</sub></b>"] == "3.00 MiB"  # there is no teacher
    assert rows["<b>a step, counted</b>"] == "5.000 GFLOP"
    assert rows["<b>a step, measured</b> (median)"] == "500 ms"
    assert rows["that is"] == "10.0 GFLOP/s"
    assert not [name for name in rows if "peak" in name or "buffers" in name]
    predicted["bytes"] = {"student": 2**20, "teacher": 2**20, "state": 2**9, "model_total": 2**21 + 2**9}
    predicted["state_of"] = ["center", "queue"]
    text = make(tmp_path, SUMMARY | {"cost": {"predicted": predicted, "measured": None}}, {})
    rows = dict(re.findall(r"<th scope=row>(.*?)</th><td>(.*?)</td>", text))
    assert rows["buffers of center, queue"] == "0.50 KiB"
    assert rows["<b>= 2·M<sub>model</sub> + M<sub>optimizer</sub></b>"] == "2.00 MiB"
    assert "150 ms" in make(tmp_path, SUMMARY | {"cost": {"predicted": None, "measured": None}}, {})


def test_what_a_run_has_not_is_left_out(tmp_path: Path) -> None:
    bare = make(tmp_path / "bare", None, {})
    assert titles(bare) == ["Configuration", "Versions"]
    assert "Not ended" in bare
    unwatched = make(
        tmp_path / "b", {**SUMMARY, "figures": {}, "seconds": {}, "optimizer_steps": 0}, {"val/knn": STEPS}
    )
    assert titles(unwatched) == ["Curves", "Configuration", "Versions"]
    assert captions(unwatched) == ["Validation accuracy"]
    assert "Not judged" in unwatched


def test_names_are_escaped(tmp_path: Path) -> None:
    text = make(tmp_path / 'a <b> & "c"', {**SUMMARY, "method": "<i>"}, SERIES, note="<script>x</script>")
    assert "<i>" not in text
    assert "<script" not in text
    assert "&lt;extra&gt;" in text
    assert "a &lt;b&gt; &amp; &quot;c&quot;" in text
    assert Elements(text).balanced


def test_what_differs_from_the_method_is_bold_and_only_that(tmp_path: Path) -> None:
    config = check("train", ["method=byol_like"]).plain
    config["teacher"]["momentum"] = 0.123
    config["trainer"]["default_root_dir"] = str(tmp_path / "checkpoints")
    config["run_dir"] = str(tmp_path)
    text = make(tmp_path, SUMMARY, {}, **config)
    assert re.findall(r"<b>(.*?)</b>", text) == ["teacher.momentum", "0.123"]
    assert "<b>" not in make(tmp_path, {**SUMMARY, "method": "of_somebody_else"}, {}, **config)


def test_inside_of_hydra_its_state_stays(tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        make(tmp_path, SUMMARY, {})
        assert GlobalHydra.instance().hydra is before
        assert before is not None


def test_a_long_run_is_a_small_page_that_keeps_its_spikes() -> None:
    series = [(float(step), 1.0) for step in range(20_000)]
    series[7_001] = (7_001.0, 50.0)
    svg = line_chart("Loss", "nats", {"loss": series})
    assert len(svg) < 20_000
    assert "loss 50 at step 7,001" in svg
    assert "at step 19,999" in svg


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", "{", "its files cannot be read"),
        ("config.yaml", "a: [1", "its files cannot be read"),
        ("config.yaml", "- 1", "its files cannot be read"),
        ("config.yaml", "x: 1", "of something else"),
    ],
)
def test_damaged_files_are_one_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    make(tmp_path, SUMMARY, SERIES)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_half_a_last_row_does_not_matter(tmp_path: Path) -> None:
    make(tmp_path, SUMMARY, SERIES)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write(",8")
    assert "Training loss" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_command(tmp_path: Path) -> None:
    def command(*given: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "src.report", *given]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)

    make(tmp_path / "run", SUMMARY, SERIES)
    (tmp_path / "run" / "report.html").unlink()
    done = command(f"run={tmp_path / 'run'}")
    assert done.stdout.split() == ["written:", str(tmp_path / "run" / "report.html")]
    assert (tmp_path / "run" / "report.html").is_file()
    refused = command(f"run={tmp_path}")
    assert refused.returncode == 2
    assert refused.stderr == f"error: run: '{tmp_path}' given, no config.yaml there; allowed is the folder of a run\n"
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_an_error_ends_says_why(tmp_path: Path) -> None:
    make(tmp_path, None, {})
    text = page(read_run(tmp_path, stopped="loss term 'near' is nan at step 3"))
    assert 'class="verdict bad">Stopped before its end: loss term &#x27;near&#x27; is nan at step 3. This is' in text
