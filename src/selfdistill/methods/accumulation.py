"""Micro-batches whose gradients are added."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Window:
    """The micro-batches since the last optimizer step, so that every image weighs the same in it.

    Lightning divides the loss of each by the number that a full window has, also where an epoch ends within one.
    """

    def __init__(self) -> None:
        self._images: list[int] = []

    def weight(self, images: int) -> float:
        """That of the loss of a micro-batch of so many images, relative to the window's first."""
        self._images.append(images)
        return images / self._images[0]

    def close(self, accumulated: int) -> float:
        """What the sum of the gradients, each divided by ``accumulated``, is to be multiplied by; starts anew."""
        images, self._images = self._images, []
        return accumulated * images[0] / sum(images) if images else 1.0


def keep_statistics(network: nn.Module, kept: bool) -> None:
    """Whether batch norms of ``network`` count what they see: what is run again for its gradient counted before."""
    for part in network.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None:
            part.track_running_stats = kept
