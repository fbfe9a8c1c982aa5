"""Ours beside lightly, in turn in one process, on the same inputs, which must give the same values.

make bench          everything, written into RESULTS.md and ratios.json
make bench-quick    what takes no longer than three minutes, compared with ratios.json
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import peers_finite
import peers_losses
import peers_steps
import peers_views
import torch
from measure import Row, in_turn, machine, peak
from runs import table, write_section

RATIOS = Path(__file__).with_name("ratios.json")
ROWS: dict[str, list[Row]] = {"losses": peers_losses.ROWS, "steps": peers_steps.ROWS, "views": peers_views.ROWS}
TITLES = {
    "losses": "Losses, targets and teacher",
    "steps": "Whole training steps",
    "views": "Views and masks",
}
FINITE = "finite"


def peak_of(part: str, row: Row, side: str) -> float:
    command = [sys.executable, __file__, "--peak", part, row.name, side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compared(name: str, ratio: float, committed: dict[str, float]) -> str:
    """A warning where a ratio fell by more than a fifth."""
    before = committed.get(name)
    if before is None or ratio > 0.8 * before:
        return ""
    return f"warning: {name}: {ratio:.2f} here, {before:.2f} when the table was made"


def measure(part: str, *, quick: bool, committed: dict[str, float]) -> list[list[str]]:
    lines = []
    for row in ROWS[part]:
        if quick and not row.quick:
            continue
        gc.collect()
        ratio = in_turn(row.build(), 5 if quick else row.repeats, wall=row.wall)
        peaks = [] if quick or not row.peaks else [f"{peak_of(part, row, side):.0f}" for side in ("ours", "theirs")]
        memory = " : ".join(peaks)
        lines.append([row.name, str(ratio), f"{row.target:g}", "yes" if ratio.median >= row.target else "no", memory])
        print(*lines[-1], compared(row.name, ratio.median, committed), sep=" | ", file=sys.stderr)
        if not quick:
            committed[row.name] = round(ratio.median, 2)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*ROWS, FINITE], default=[*ROWS, FINITE])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", nargs=3, metavar=("PART", "ROW", "SIDE"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        part, name, side = given.peak
        (row,) = (row for row in ROWS[part] if row.name == name)
        print(peak(getattr(row.build(), side)))
        return
    committed = json.loads(RATIOS.read_text(encoding="utf-8")) if RATIOS.exists() else {}
    if FINITE in given.only and not given.quick:
        write_section(
            "peers finite",
            f"### Inputs at which a loss may give no number\n\n`make bench`: lightly {version('lightly')}; value "
            "and gradient.\n\n" + table(["input", "ours", "lightly"], peers_finite.rows()),
        )
    for part in (part for part in given.only if part in ROWS):
        lines = measure(part, quick=given.quick, committed=committed)
        if given.quick:
            continue
        RATIOS.write_text(json.dumps(committed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        header = ["work", "speed (quartiles)", "asked", "reached", "peak, MiB, ours : theirs"]
        write_section(
            f"peers {part}",
            f"### {TITLES[part]}, beside lightly\n\n`make bench`: {machine()}, lightly {version('lightly')}. Speed is "
            "the time of lightly's over that of ours: in turn in one process, on the same inputs, with the same "
            "results; the median of the turns' ratios. Time is the processor's, since other programs ran beside it; "
            "peak is what a call adds to a process of its own.\n\n" + table(header, lines),
        )


if __name__ == "__main__":
    main()
