"""Mean ± standard deviation of the final figures over the runs below some folders.

python -m src.train -m seed=0,1,2
python benchmarks/figures.py outputs/sweeps/<time>
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def main(folders: list[str]) -> None:
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, list[float]] = defaultdict(list)
    for folder in folders:
        for file in sorted(Path(folder).rglob("summary.json")):
            summary = json.loads(file.read_text(encoding="utf-8"))
            seconds[summary["method"]].append(summary["seconds"]["train"])
            for row, figures in summary["figures"].items():
                for name, value in figures.items():
                    values[summary["method"], row][name].append(value)
    if not values:
        sys.exit(f"no summary.json below {', '.join(folders)}: give the folder of a run or a sweep")
    names = list(next(iter(values.values())))
    print("| method | representation | runs | " + " | ".join(names) + " | training, s |")
    print("|---|---|---|" + "---|" * (len(names) + 1))
    for (method, row), figures in values.items():
        cells = [_cell(figures[name], 3) for name in names]
        time = _cell(seconds[method], 0) if row == "trained" else ""
        print(f"| {method} | {row} | {len(figures[names[0]])} | " + " | ".join(cells) + f" | {time} |")


def _cell(values: list[float], digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1:] or ["outputs"])
