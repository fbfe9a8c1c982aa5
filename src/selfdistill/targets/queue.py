"""Memory of past outputs: negatives of MoCo, relations of ReSSL and CO2, extra samples of SwAV."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.distributed import all_gather_cat
from selfdistill.targets.state import StagedState

__all__ = ["Queue"]


class Queue(StagedState):
    """The last `length` observed rows of all ranks, first in, first out (MoCo, arXiv 1911.05722).

    A ring: each commit overwrites the oldest rows in place, for any batch size; of a batch longer than the
    queue the newest rows remain. Rows arrive in rank order, so that every rank holds the same queue.

    Rows observed in a step enter it after that step: a positive is never among its own negatives.

    Args:
        length: Number of rows.
        dim: Size of a row.
        seed: Of the random unit rows that fill the queue at the start; None takes that of torch's generator, from
            which no number is drawn.

    Attributes:
        items: [length, dim] float32, in ring order, not in order of age.

    Raises:
        ValueError: An argument is out of range.
    """

    items: Tensor

    def __init__(self, length: int, dim: int, seed: int | None = None) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}; without a queue, build none")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}; give the output size of the head")
        super().__init__()
        self.length = length
        self.dim = dim
        # A host integer: a pointer on the device would have to be waited for in every step.
        self._written = 0
        generator = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
        self.register_buffer("items", F.normalize(torch.randn(length, dim, generator=generator), dim=1))

    @property
    def pointer(self) -> int:
        """Index of the row that is overwritten next; once the queue is full, the oldest."""
        return self._written % self.length

    @property
    def filled(self) -> int:
        """Number of rows that were observed, at most `length`; the others are still random."""
        return min(self._written, self.length)

    @property
    def is_full(self) -> bool:
        """Whether no random row is left. SwAV must not use its queue before."""
        return self._written >= self.length

    def forward(self) -> Tensor:
        """All rows, [length, dim], as of the last commit.

        The buffer itself, not a copy: it is written to in `commit`, which comes after backward, when no graph
        needs the old values any more. A commit before backward makes autograd raise, it cannot go wrong
        silently.
        """
        return self.items

    def _stage(self, batch: Tensor) -> Tensor:
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise ValueError(
                f"keys must have shape [batch, {self.dim}], got {list(batch.shape)}; "
                "give Queue the output size of the head as dim"
            )
        return batch.detach().to(self.items, copy=True)

    def _merge(self, staged: list[Tensor]) -> None:
        rows = all_gather_cat(torch.cat(staged))
        self._written += len(rows)
        rows = rows[-self.length :]
        start = (self._written - len(rows)) % self.length
        until_end = min(len(rows), self.length - start)
        self.items[start : start + until_end] = rows[:until_end]
        self.items[: len(rows) - until_end] = rows[until_end:]

    def get_extra_state(self) -> dict[str, int]:
        """How many rows were ever written, a plain integer: loads with `weights_only=True`."""
        return {"written": self._written}

    def set_extra_state(self, state: Any) -> None:
        self._written = int(state["written"])

    def extra_repr(self) -> str:
        return f"length={self.length}, dim={self.dim}"
