"""The page stays small enough to be mailed, whatever the run was."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from selfdistill.config import check
from selfdistill.report import write_report
from selfdistill.report.sheet import as_tiles, save_sheet, tile_side

EPOCHS, STEPS = 100, 195
"""50,000 images in batches of 256: ten times the steps that the embedded digits take in as many epochs."""

SERIES = [
    *("train/loss", "train/cls", "train/patch", "train/koleo", "train/contrastive", "val/knn", "val/probe"),
    *("teacher/momentum", "temperature/student_temperature", "temperature/teacher_temperature", "optimizer/lr"),
    *("monitor/std", "monitor/projection_std", "monitor/rank", "monitor/projection_rank"),
    *("monitor/prototype_entropy", "monitor/target_entropy", "monitor/prototype_sharpness"),
    *("monitor/target_sharpness", "monitor/prototype_information", "monitor/target_information"),
    *("monitor/alignment", "monitor/uniformity", "monitor/teacher_age", "monitor/teacher_distance"),
    "monitor/agreement",
]
KINDS = ("diverging", "complete", "cluster", "uniform", "dimensional", "teacher_stale", "teacher_copying")
SECTIONS = [
    *("Figures", "Curves", "Geometry", "Teacher", "Views and masks", "Nearest neighbours", "Embedding map"),
    *("Attention", "Cost", "Configuration", "Versions"),
]


def store_pictures(folder: Path) -> None:
    """Every panel as large as ``make_pictures`` makes it, of noise, which no format makes smaller."""
    generator = torch.Generator().manual_seed(0)

    def sheet(name: str, rows: int, columns: int, most: int) -> dict[str, Any]:
        side = tile_side(224, most)
        noise = as_tiles(torch.rand(rows * columns, 3, side, side, generator=generator), side)
        return save_sheet(folder / "pictures", name, noise.unflatten(0, (rows, columns)))

    crops = ["stored", *["global 224x224\nstudent + teacher"] * 2, *["local 96x96\nstudent"] * 10]
    points = torch.randn(2, 1000, 2, generator=generator).tolist()
    labels = torch.randint(1000, (8, 6), generator=generator).tolist()
    panels = {
        "left_out": {},
        "views": sheet("views", 4, len(crops), 96) | {"titles": crops},
        "neighbours": sheet("neighbours", 8, 6, 64)
        | {"typical": 5, "mistaken": 0.5, "labels": labels, "similarity": [[0.5] * 5] * 8, "bank": 5000, "tests": 1000},
        "embedding": {"pca": points[0], "tsne": points[1], "explained": [0.3, 0.2], "classes": [*range(1000)]},
        "attention": sheet("attention", 6, 8, 96) | {"titles": ["map"] * 8, "who": "class token"},
    }
    (folder / "pictures" / "panels.json").write_text(json.dumps(panels))


def test_a_full_page_is_under_3_mb(tmp_path: Path) -> None:
    store_pictures(tmp_path)
    plain = check("train", ["method=dinov2_like"]).plain
    (tmp_path / "config.yaml").write_text(json.dumps(plain | {"run_dir": str(tmp_path)}))
    rows = [",".join(["step", *SERIES])]
    for step in range(0, EPOCHS * STEPS, 10):
        rows.append(",".join([str(step), *(f"{2 + math.sin(step * (1 + place)):.7f}" for place in range(len(SERIES)))]))
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    alarms = [
        {"kind": kind, "step": 2000 * (1 + place), "since": 2000 * place, "line": f"{kind} since step 0: {'why ' * 40}"}
        for place, kind in enumerate(KINDS)
    ]
    figures = {row: dict.fromkeys(("knn", "one_shot", "five_shot"), 0.5) for row in ("trained", "raw_pixels")}
    summary = {"method": "dinov2_like", "figures": figures, "collapse": "cluster", "alarms": alarms}
    summary |= {"seconds": {"train": 1e5}, "optimizer_steps": EPOCHS * STEPS}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = write_report(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    assert text.count('class="mark"') > 2 * len(KINDS)
    assert len(re.findall(r"<figcaption>", text)) > 100
    assert 500_000 < page.stat().st_size < 3_000_000
