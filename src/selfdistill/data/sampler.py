"""Order of the samples as a pure function of (seed, epoch), and a loader that can start anywhere in it.

Where a resumed run continues is a question with one right answer, and only the Trainer's counters know it. Seen on
Lightning 2.6 with probes at every hook:

- It calls `load_state_dict`, then `iter`, then `set_epoch`, then `next`. An iterator that reads its position, or lets
  its workers fetch, before the first `next` therefore starts in the wrong epoch.
- It calls `load_state_dict` only where the saved epoch was unfinished.
- After a save in `on_train_batch_end` of an epoch's last batch it goes on with the next epoch on the very iterator that
  follows `load_state_dict`; after a save in `on_train_epoch_end` under `max_steps` it first asks that iterator for one
  batch more than the epoch has. The two look alike to a loader.
- `set_epoch` is one too high for the rest of the run in that last case, while `trainer.current_epoch` is right.
- A batch that an exception cut short was handed out, but is run again.

So the loader starts lazily, at the first `next`, and where it is a Trainer's own, at (`trainer.current_epoch`,
`trainer.fit_loop.batch_idx + 1`), which is right in all of these cases. Without a Trainer (Fabric, a plain loop) its
own state decides: the batches handed out, not those that workers fetched ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from selfdistill.distributed import rank, world_size


class EpochIndices(list[int]):
    """The sample indices of one batch, and the epoch that they are drawn in: views depend on both."""

    def __init__(self, indices: list[int], epoch: int) -> None:
        super().__init__(indices)
        self.epoch = epoch

    def __reduce__(self) -> tuple[Any, ...]:
        return EpochIndices, (list(self), self.epoch)


class ResumableBatchSampler(DistributedSampler[EpochIndices]):
    """Batches of indices whose order depends on seed and epoch alone, shared out over the ranks.

    Rank r of W takes the positions r, r + W, … of the common order, so that the W batches of a step are together the
    batch of W times the size that one process would take. Without `drop_last` the ranks' last batches differ by one
    sample where it has to be; samples that would make a micro-batch more on some ranks than on others, or the only one,
    are left out. Ranks are asked for when the order is made, since a loader may be built before the process group.

    It *is* a `DistributedSampler` so that Lightning does not wrap it in another one.

    Args:
        length: number of samples.
        batch_size: samples a batch and rank.
        seed: of the order.
        drop_last: leave out the last batch of an epoch where it is smaller than the others, or all of it that is no
            multiple of `unit`.
        shuffle: False gives 0, 1, 2, … in every epoch.
        permutation: makes the order of an epoch from a generator; None makes all orders equally likely.
        unit: samples of a micro-batch, of which a batch has several; None for batches that are not divided.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        *,
        drop_last: bool = True,
        shuffle: bool = True,
        permutation: Callable[[np.random.Generator], np.ndarray] | None = None,
        unit: int | None = None,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"sampler: length={length}, batch_size={batch_size}; both must be at least 1")
        # Declared to take a data set, of which it reads the length alone.
        super().__init__(range(length), num_replicas=1, rank=0, shuffle=shuffle, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        self.length = length
        self.batch_size = batch_size
        self.permutation = permutation
        self.unit = batch_size if unit is None else unit
        self.start = 0

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever this one starts; the same on every rank."""
        return -(-self._taken() // (self.batch_size * world_size()))

    def images_of_all(self, batch: int) -> int:
        """Samples that the ranks take together in that batch of an epoch."""
        whole = self.batch_size * world_size()
        return min(whole, self._taken() - batch * whole)

    def __iter__(self) -> Iterator[EpochIndices]:
        """The batches of `epoch` from number `start` on."""
        epoch = self.epoch
        order = np.arange(self.length)
        if self.shuffle:
            generator = np.random.default_rng((self.seed, epoch))
            order = generator.permutation(order) if self.permutation is None else self.permutation(generator)
        mine = order[rank() : self._taken() : world_size()]
        for batch in range(self.start, len(self)):
            yield EpochIndices(mine[batch * self.batch_size : (batch + 1) * self.batch_size].tolist(), epoch)

    def _taken(self) -> int:
        """Samples of an epoch, of all ranks."""
        ranks = world_size()
        if self.drop_last:
            return self.length // ranks // self.unit * self.unit * ranks
        low, more = divmod(self.length % (self.batch_size * ranks), ranks)
        # One image more on some ranks may not be a micro-batch more there: networks are gathered by all together.
        return self.length - (more if low % self.unit == 0 else 0)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that resumes at the exact batch, see the module's text.

    Args:
        dataset: indexed by a whole batch of `EpochIndices`, answers with the collated batch.
        sampler: the order.
        num_workers: as DataLoader; workers live as long as the loader.
        pin_memory: as DataLoader.

    Attributes:
        trainer: the Trainer whose counters say where to start, where this is its training loader.
        seconds_waited: time that whoever iterates has spent waiting for batches.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: ResumableBatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=as_it_is,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # Each iterator draws a seed for its workers; from the global generator that would shift every later draw of
            # a resumed run, which makes one iterator more.
            generator=torch.Generator(),
        )
        self.trainer: L.Trainer | None = None
        self.seconds_waited = 0.0
        self._order = sampler
        self._resume = (0, 0)
        self._handed_out = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # declared as a private class of torch's
        """The epoch's batches from where it starts, which the first `next` decides."""
        epoch, position = self._where_to_start()
        self._order.set_epoch(epoch)
        self._order.start = self._handed_out = position
        self._resume = (0, 0)
        started = time.perf_counter()
        for batch in super().__iter__():
            self.seconds_waited += time.perf_counter() - started
            self._handed_out += 1
            yield batch
            started = time.perf_counter()
        self._order.set_epoch(epoch + 1)
        self._handed_out = 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, and the number of its batches that were handed out."""
        return {"epoch": self._order.epoch, "position": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the batch that `state` was taken at."""
        epoch, position = state["epoch"], state["position"]
        if position >= len(self):
            epoch, position = epoch + 1, 0
        self._order.set_epoch(epoch)
        self._resume = (epoch, position)
        self._handed_out = position

    def _where_to_start(self) -> tuple[int, int]:
        trainer = self.trainer
        if trainer is not None and trainer.training and trainer.train_dataloader is self:
            return trainer.current_epoch, trainer.fit_loop.batch_idx + 1
        epoch, position = self._resume
        return self._order.epoch, position if self._order.epoch == epoch else 0


def as_it_is(batch: Any) -> Any:
    return batch
