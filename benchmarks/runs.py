"""Runs of the command, cached by their resolved configuration, so that a table can be finished in several sittings."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfdistill.config import check

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "outputs" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"

Summary = dict[str, Any]

# Settings that joined the files at what had been their defaults: earlier runs are the same runs.
_STATED_LATER = {
    "deterministic": False,
    "data.limit": None,
    "data.on_error": "raise",
    "views.masks": None,
    "callbacks.collapse_monitor.rows": 256,
}


def folder_of(overrides: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """Where the run of these overrides lies: named by the hash of what its configuration says, but for ``ignore``.

    Args:
        overrides: of the command.
        ignore: settings or groups that a finished run need not share, with dots.
    """
    plain = check("train", overrides).plain
    for path, default in _STATED_LATER.items():
        *parents, last = path.split(".")
        node = plain
        for parent in parents:
            node = node[parent]
        if node.get(last, default) == default:
            node.pop(last, None)
    for path in ignore:
        *parents, last = path.split(".")
        node = plain
        for parent in parents:
            node = node[parent]
        del node[last]
    text = json.dumps(plain, sort_keys=True, default=str)
    return CACHE / hashlib.sha256(text.encode()).hexdigest()[:16]


def run(overrides: Sequence[str], folder: Path, *, threads: int = 1) -> Summary:
    """The run's ``summary.json``; trains where there is none yet. A run that ends in an error says so in ``error``."""
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "src.train", *overrides, f"hydra.run.dir={folder}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode in (-2, 130):
            raise KeyboardInterrupt
        if done.returncode:
            line = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return {"error": line, "overrides": list(overrides)}
    summary: Summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {**summary, "overrides": list(overrides), "folder": str(folder)}


def run_all(
    jobs: Sequence[Sequence[str]], *, parallel: int = 1, threads: int = 1, ignore: Sequence[str] = ()
) -> list[Summary]:
    """The summaries of all jobs in their order; each is said on stderr as it ends.

    Args:
        jobs: overrides of each.
        parallel: runs at a time.
        threads: of each run.
        ignore: groups that a finished run need not share, since they only watch.
    """
    folders = [folder_of(overrides, ignore) for overrides in jobs]  # here, since Hydra composes in one thread only

    def one(overrides: Sequence[str], folder: Path) -> Summary:
        summary = run(overrides, folder, threads=threads)
        print(" ".join(overrides), "->", summary.get("error") or summary["figures"].get("trained"), file=sys.stderr)
        return summary

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(one, jobs, folders))


def sitting(
    jobs: Sequence[Sequence[str]],
    *,
    minutes: float = math.inf,
    parallel: int = 1,
    threads: int = 1,
    ignore: Sequence[str] = (),
) -> dict[tuple[str, ...], Summary]:
    """The summaries of all jobs that are finished or can be begun within so many minutes, by their overrides."""
    folders = [folder_of(overrides, ignore) for overrides in jobs]
    end = time.monotonic() + 60 * minutes

    def one(overrides: Sequence[str], folder: Path) -> Summary | None:
        finished = (folder / "summary.json").exists()
        if not finished and time.monotonic() > end:
            return None
        summary = run(overrides, folder, threads=threads)
        if not finished:
            print(" ".join(overrides), "->", summary.get("error") or summary["figures"].get("trained"), file=sys.stderr)
        return summary

    with ThreadPoolExecutor(parallel) as pool:
        found = zip(jobs, pool.map(one, jobs, folders), strict=True)
        return {tuple(overrides): summary for overrides, summary in found if summary is not None}


def cell(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds; a dash where there is nothing."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_section(name: str, text: str) -> None:
    """Put ``text`` between the markers of section ``name`` in RESULTS.md, at its end where there are none."""
    start, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{start}\n{text.strip()}\n{end}"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old.rstrip()}\n\n{block}\n"
    temporary = RESULTS.with_suffix(".part")
    temporary.write_text(new, encoding="utf-8")
    temporary.replace(RESULTS)
    print(text)
