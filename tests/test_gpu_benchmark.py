"""That ``benchmarks/gpu.py`` runs, where it can be tried without a card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_its_tiny_jobs(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    header, _, *rows = [line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == ["| byol_r50", "| dino_vits", "| dinov2_vitb", "| byol_r18_32"]
    assert all(row.count("|") == header.count("|") for row in rows)


def test_without_a_card_it_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = subprocess.run([sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("no GPU here; --tiny runs small jobs on the CPU")
