"""Centering of teacher logits, the counterweight of sharpening in DINO."""

import torch
from torch import Tensor

from selfdistill.distributed import all_reduce_sum
from selfdistill.targets.state import StagedState

__all__ = ["Center"]


class Center(StagedState):
    """Running mean of logits, subtracted from them (DINO, arXiv 2104.14294, eq. 4).

    c ← m·c + (1 − m)·mean(logits)

    The mean is over all samples of all micro-batches and ranks of an optimizer step, whatever their sizes. A
    step without any sample, or whose mean is not finite, leaves the center alone: an infinity would never
    leave it again.

    Args:
        dim: Number of logits K.
        momentum: m, in [0, 1].

    Attributes:
        center: [1, K] float32, starts at 0.

    Raises:
        ValueError: An argument is out of range.
    """

    center: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}; give the number of logits")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}; DINO uses 0.9")
        super().__init__()
        self.dim = dim
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, dim))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits minus the center as it was at the last commit.

        Args:
            logits: [..., K].

        Returns:
            [..., K], at least float32.

        Raises:
            ValueError: The last dimension is not K.
        """
        self._check(logits)
        return logits - self.center[0]

    def _stage(self, batch: Tensor) -> Tensor:
        self._check(batch)
        samples = batch.reshape(-1, self.dim)
        total = samples.sum(0, dtype=self.center.dtype)
        # The count travels as one more column: one collective at commit, no copy from host to device.
        return torch.cat([total, total.new_full((1,), samples.shape[0])])

    def _merge(self, staged: list[Tensor]) -> None:
        total = all_reduce_sum(torch.stack(staged).sum(0))
        mean = total[:-1] / total[-1]
        moved = self.momentum * self.center + (1 - self.momentum) * mean
        self.center.copy_(torch.where(mean.isfinite().all(), moved, self.center))

    def _check(self, logits: Tensor) -> None:
        if logits.ndim < 1 or logits.shape[-1] != self.dim:
            raise ValueError(
                f"logits must have shape [..., {self.dim}], got {list(logits.shape)}; "
                "give Center the output size of the head as dim"
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, momentum={self.momentum}"
