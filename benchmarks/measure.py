"""Two programs for the same work: their times in turn, the memory of each in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Side = Callable[[], Any]


@dataclass(frozen=True)
class Pair:
    """Ours and theirs on the same inputs.

    Attributes:
        ours: returns what it computed, as a tensor or tensors, or None where chance decides.
        theirs: likewise, the same within ``tolerance``.
        tolerance: relative, of every number returned.
    """

    ours: Side
    theirs: Side
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: what is done.
        target: how many times quicker it should be.
        build: makes the pair.
        repeats: of each side.
        peaks: measure memory too.
        quick: in ``make bench-quick``.
        wall: measure the time on the wall, for what runs in several processes.
    """

    name: str
    target: float
    build: Callable[[], Pair]
    repeats: int = 9
    peaks: bool = False
    quick: bool = True
    wall: bool = False


@dataclass(frozen=True)
class Ratio:
    """Times of theirs over ours: the median of the turns, and the quartiles."""

    median: float
    low: float
    high: float
    ours: float
    """Median seconds."""

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def in_turn(pair: Pair, repeats: int, *, wall: bool = False) -> Ratio:
    """Run both sides in turn, the order changing, and compare what they return.

    Seconds are those of the processor, so that other programs on the machine count only for what they take of caches
    and memory.

    Raises:
        SystemExit: they compute different values.
    """
    clock = time.perf_counter if wall else time.process_time
    sides = {"ours": pair.ours, "theirs": pair.theirs}
    check(pair.ours(), pair.theirs(), pair.tolerance)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    calls = 1
    for turn in range(repeats + 1):
        for name in sorted(sides, reverse=bool(turn % 2)):
            start = clock()
            for _ in range(calls):
                sides[name]()
            seconds[name].append((clock() - start) / calls)
        if turn == 0:  # the first is for warming up, and tells how many make a tenth of a second
            calls = max(1, round(0.1 / seconds["theirs"].pop()))
            seconds["ours"].pop()
    check(pair.ours(), pair.theirs(), pair.tolerance)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Ratio(statistics.median(ratios), low, high, statistics.median(seconds["ours"]))


def check(ours: Any, theirs: Any, tolerance: float) -> None:
    """SystemExit where the two differ."""
    if ours is None or theirs is None:
        return
    for mine, other in zip(_tensors(ours), _tensors(theirs), strict=True):
        scale = other.abs().max().item()
        gap = (mine - other).abs().max().item()
        if not gap <= tolerance * scale:
            raise SystemExit(f"the two sides differ by {gap:.2e}, at a scale of {scale:.2e}")


def _tensors(value: Any) -> Sequence[Tensor]:
    parts = [value] if isinstance(value, Tensor) else list(value)
    return [part.detach().double() for part in parts]


def peak(side: Side) -> float:
    """MiB that a second call adds to this process; Linux only."""
    side()  # what libraries take once
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what it left in the allocator would not count
    return added(side)


def added(side: Side) -> float:
    """MiB that a call adds to this process at most; Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again from here
    before = resident("VmRSS")
    side()
    return resident("VmHWM") - before


def resident(entry: str) -> float:
    """MiB of this process, now (``VmRSS``) or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (found,) = (line for line in lines if line.startswith(entry))
    return int(found.split()[1]) / 1024


def machine() -> str:
    """Processor, threads and versions, for the head of a table."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}, torch {version('torch')}"
