"""State that follows the training data: staged per micro-batch, applied per executed optimizer step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["StagedState"]


class StagedState(nn.Module, ABC):
    """A module whose buffers change only in `commit`.

    `observe` sets a micro-batch aside, `commit` applies everything set aside since the last commit, `discard`
    drops it because the optimizer step was skipped. N accumulated micro-batches thus act as one batch, what
    `forward` reads stays fixed while a step is being computed, and evaluation never leaks into training.

    What is set aside is not in the `state_dict`: checkpoints belong on the boundary between two steps.

    `commit` may run collectives. All ranks must observe equally often; a batch of zero rows counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[Tensor] = []

    @torch.no_grad()
    def observe(self, batch: Tensor) -> None:
        """Sets a micro-batch aside; does nothing in eval mode.

        Raises:
            ValueError: The shape does not fit.
        """
        if self.training:
            self._staged.append(self._stage(batch))

    @torch.no_grad()
    def commit(self) -> None:
        """Applies all that was observed since the last commit, over all ranks; without any, does nothing."""
        staged, self._staged = self._staged, []
        if staged:
            self._merge(staged)

    def discard(self) -> None:
        """Drops all that was observed since the last commit."""
        self._staged = []

    @abstractmethod
    def _stage(self, batch: Tensor) -> Tensor:
        """What `_merge` will need of a micro-batch, in memory of its own."""

    @abstractmethod
    def _merge(self, staged: list[Tensor]) -> None:
        """Updates the buffers in place from what `_stage` returned, oldest first (at least one)."""
