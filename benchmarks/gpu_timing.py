"""Seconds on a device that works behind the program's back."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch

PHASES = ("data", "teacher", "student", "loss", "backward", "optimizer", "EMA and state")


class Timer:
    """Seconds of each phase; waits for the device at its borders where ``synchronise``."""

    def __init__(self, device: torch.device, synchronise: bool) -> None:
        self.device, self.synchronise = device, synchronise
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[phase] += self.now() - start

    def now(self) -> float:
        if self.synchronise:
            wait(self.device)
        return time.perf_counter()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def per_step(call: Callable[[], object], device: torch.device, steps: int) -> float:
    """Seconds of a call: the median of five times so many."""
    times = []
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            call()
        wait(device)
        times.append((time.perf_counter() - start) / steps)
    return statistics.median(times)
