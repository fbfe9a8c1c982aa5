"""Fifty SIGKILLs from outside, at random moments of runs of every method: does each end as if nothing had happened?

``python benchmarks/kills.py``: a run is killed where its processor time has reached a random value, the same command
with ``ckpt_path=auto`` continues it, and so on; in the end everything that it left is compared, bit for bit, with what
a run without kills has left. It takes about five minutes on an idle core.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import machine
from runs import ROOT, table, write_section

sys.path.insert(0, str(ROOT / "tests" / "resume"))
from killing import SHORT, differences, start

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    done: list[tuple[str, int, int, Counter[str]]] = []
    for number, method in enumerate(arguments.methods):
        quota = arguments.kills // len(arguments.methods) + (number < arguments.kills % len(arguments.methods))
        with tempfile.TemporaryDirectory() as folder:
            done.append((method, *killed(method, quota, Path(folder), dice)))
        print(done[-1], file=sys.stderr, flush=True)
        write(done)


def write(done: Sequence[tuple[str, int, int, Counter[str]]]) -> None:
    """The table of the methods so far."""
    everywhere = sum((where for *_, where in done), Counter[str]())
    every = ("all", sum(ended for _, ended, *_ in done), sum(equal for _, _, equal, _ in done), everywhere)
    rows = [[name, str(met.total()), _told(met), str(ended), str(equal)] for name, ended, equal, met in [*done, every]]
    write_section(
        "kills",
        "### Killed at random moments and continued\n\n"
        f"`python benchmarks/kills.py`: {machine()}. Digits, batches of 16, two micro-batches a step, 3 steps an "
        "epoch, 2 epochs, a checkpoint after every step. SIGKILL from outside when the processor time since the "
        "training began reaches a random value; continued by the same command with `ckpt_path=auto`, until it came to "
        "its end. Bit-equal: weights of both networks, optimizer, center, queue, generators, counters, both "
        "checkpoints, the exported backbone, every row of metrics.csv (but `monitor/gradient_signal`) and the summary "
        "are those of a run that was not killed.\n\n"
        + table(["method", "kills", "met", "runs that came to their end", "bit-equal"], rows),
    )


def killed(method: str, quota: int, folder: Path, dice: random.Random) -> tuple[int, int, Counter[str]]:
    """Runs that ended, those of them that are bit-equal to the one without kills, and what the kills met."""
    command = [f"method={method}", *SHORT]
    whole, where, ended, equal = folder / "whole", Counter[str](), 0, 0
    _, took = watched(command, whole, None)
    run = folder / "run0"
    while True:
        # soon enough that several kills fall into the training of one run; once all are spent, it may end
        after = dice.uniform(0, 0.45 * took) if sum(where.values()) < quota else None
        met, _ = watched([*command, "ckpt_path=auto"], run, after)
        if met is not None:
            where[met] += 1
            continue
        ended += 1
        found = differences(whole, run)
        equal += not found
        for line in found:
            print(f"{method}: {line}", file=sys.stderr)
        if after is None:
            return ended, equal, where
        run = folder / f"run{ended}"


def watched(command: list[str], run: Path, after: float | None) -> tuple[str | None, float]:
    """What the kill met, None where the run came to its end, and the processor seconds that its training took."""
    began, ends, seconds, took, phase = None, False, 0.0, 0.0, run.with_suffix(".phase")
    phase.write_bytes(b"set-up".ljust(32))
    process: Any = start(command, run, phases=phase)
    while process.is_alive():
        if (now := _processor_seconds(process.pid)) is None:
            break
        met = phase.read_text(encoding="utf-8").strip()
        if began is None and met not in ("set-up", "figures"):
            began = now
        if began is not None:
            seconds = now - began
            ends = ends or met in ("figures", "files at the end")
            took = took if ends else seconds
            if after is not None and seconds >= after:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                if process.exitcode == -signal.SIGKILL:
                    return phase.read_text(encoding="utf-8").strip(), seconds
        time.sleep(0.002)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.exitcode}\n{run.with_suffix('.log').read_text()}")
    return None, took


def _processor_seconds(pid: int) -> float | None:
    try:
        fields = re.sub(r"^.*\) ", "", Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")).split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return (int(fields[11]) + int(fields[12])) / TICK


def _told(where: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in where.most_common())


if __name__ == "__main__":
    main()
