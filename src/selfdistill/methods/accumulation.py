"""Micro-batches that make one optimizer step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfdistill.distributed import world_size


def images_of_all(trainer: Any, batch: int, images: int) -> int:
    """How many images all processes have in their micro-batches of that number, where this one has ``images``.

    The training loader's sampler says it (``images_of_all``); those of one that does not are taken to be equally many.
    """
    if world_size() == 1:
        return images
    said = getattr(getattr(trainer.train_dataloader, "sampler", None), "images_of_all", None)
    return images * world_size() if said is None else said(batch)


def images_of_step(trainer: Any) -> int | None:
    """Images of one optimizer step over all processes; None where the loader does not say."""
    _ = trainer.estimated_stepping_batches  # has the side effect of setting the loader up
    loader = trainer.train_dataloader
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "sampler", None), "batch_size", None)
    return None if size is None else int(size) * trainer.accumulate_grad_batches * trainer.world_size


class Window:
    """The micro-batches since the last optimizer step, so that every image weighs the same in it.

    Lightning divides the loss of each by the number that a full window has, also where an epoch ends within one.
    """

    def __init__(self) -> None:
        self._first = self._total = 0

    def weight(self, images: int) -> float:
        """That of the loss of a micro-batch of so many images, relative to the window's first."""
        self._first = self._first or images
        self._total += images
        return images / self._first

    def close(self, accumulated: int) -> float:
        """What the sum of the gradients, each divided by ``accumulated``, is to be multiplied by; starts anew."""
        first, total = self._first, self._total
        self._first = self._total = 0
        return accumulated * first / total if total else 1.0


class HeldStatistics:
    """Keeps batch norms from counting again what is run again for its gradient."""

    def __init__(self) -> None:
        self._held: list[tuple[_BatchNorm, float | None, Tensor | None]] = []

    def hold(self, network: nn.Module) -> None:
        """Running statistics of ``network`` stay as they are from now on."""
        for part in network.modules():
            if isinstance(part, _BatchNorm) and part.running_mean is not None:
                count = part.num_batches_tracked
                self._held.append((part, part.momentum, count))
                part.momentum, part.num_batches_tracked = 0.0, None if count is None else count.clone()

    def release(self) -> None:
        """They follow the batches again."""
        for part, momentum, count in self._held:
            part.momentum, part.num_batches_tracked = momentum, count
        self._held = []
