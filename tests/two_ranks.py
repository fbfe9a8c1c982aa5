"""A computation in two processes of one group on this machine."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(computation: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``computation``, a function of a module, gives for its rank; a rank that fails, or waits in vain, fails."""
    mp.spawn(_rank, (computation, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank: int, computation: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", timedelta(seconds=120), rank=rank, world_size=2)
    torch.save(computation(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
