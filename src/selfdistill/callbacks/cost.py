"""What a step took: its time and the peak of memory, to stand beside what was predicted."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from selfdistill.sharding import local

_BATCHES = 50
"""So many batches of the run's beginning are watched for memory, and ten times as many for time."""


class CostMeter(L.Callback):
    """Measures the first batches of a run."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._last: float | None = None
        self._held: float | None = None
        self._start: float | None = None
        self._peak: float | None = None
        self._seen = 0

    @property
    def measured(self) -> dict[str, Any]:
        """``step_seconds``, ``peak_bytes`` and ``peak_of``; None where it was not measured.

        Seconds are the median from the end of one batch to that of the next, waiting for data included. The peak is
        what torch had allocated on a GPU (``peak_of="cuda"``). On a CPU (``"process"``) it is the tensors that the end
        of the first batch leaves, and how much the process grew from there.
        """
        later = self._seconds[len(self._seconds) // 10 :]
        of = "process" if self._start is not None else "cuda"
        return {
            "step_seconds": statistics.median(later) if later else None,
            "peak_bytes": None if self._peak is None else round(self._peak),
            "peak_of": None if self._peak is None else of,
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._last is not None and len(self._seconds) < 10 * _BATCHES:
            self._seconds.append(time.perf_counter() - self._last)
        # from the first validation on, the peak would be another's
        if self._seen < _BATCHES and trainer.current_epoch == 0:
            self._seen += 1
            if pl_module.device.type == "cuda":
                self._peak = torch.cuda.max_memory_allocated(pl_module.device)
            elif pl_module.device.type == "cpu" and self._seen == 1:
                self._held, self._start = _held(trainer, pl_module), _begin()
            elif self._held is not None and self._start is not None:
                self._peak = self._held + _resident("VmHWM") - self._start
        self._last = time.perf_counter()


def _held(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """Bytes of parameters, buffers, gradients and what optimizers keep."""
    tensors = [*pl_module.parameters(), *pl_module.buffers()]
    tensors += [p.grad for p in pl_module.parameters() if p.grad is not None]
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(local(tensor).nbytes for tensor in tensors)


def _begin() -> float | None:
    """Bytes of this process now, from which its peak starts again; None where the system does not tell."""
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator has kept would hide what a step takes
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return _resident("VmRSS")
    except OSError:
        return None


def _resident(entry: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (found,) = (line for line in lines if line.startswith(entry))
    return int(found.split()[1]) * 1024
