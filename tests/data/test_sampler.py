"""Order of the samples: a function of seed and epoch, shared out over ranks without loss or overlap."""

from __future__ import annotations

import pickle
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data.distributed import DistributedSampler

from selfdistill.data import EpochIndices, ResumableBatchSampler, sampler

SMALL = st.integers(1, 40)


def batches(order: ResumableBatchSampler, epoch: int = 0, start: int = 0) -> list[list[int]]:
    order.set_epoch(epoch)
    order.start = start
    return [list(batch) for batch in order]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(length=SMALL, batch_size=SMALL, drop_last=st.booleans(), epoch=st.integers(0, 3), seed=st.integers(0, 3))
def test_one_process(length: int, batch_size: int, drop_last: bool, epoch: int, seed: int) -> None:
    order = ResumableBatchSampler(length, batch_size, seed, drop_last=drop_last)
    got = batches(order, epoch)
    assert len(got) == len(order)
    flat = list(chain.from_iterable(got))
    assert len(set(flat)) == len(flat)
    assert len(flat) == (length // batch_size * batch_size if drop_last else length)
    assert set(flat) <= set(range(length))
    assert all(len(batch) == batch_size for batch in (got if drop_last else got[:-1]))
    for start in range(len(got) + 1):
        assert batches(order, epoch, start) == got[start:]
    assert len(order) == len(got), "a late start does not shorten the epoch"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(length=SMALL, unit=st.integers(1, 6), joined=st.integers(1, 5), drop_last=st.booleans())
def test_micro_batches_are_joined_and_no_image_is_lost_by_it(
    length: int, unit: int, joined: int, drop_last: bool
) -> None:
    single = batches(ResumableBatchSampler(length, unit, drop_last=drop_last))
    order = ResumableBatchSampler(length, unit * joined, unit=unit, drop_last=drop_last)
    got = batches(order)
    assert len(order) == len(got)
    windows = [single[i : i + joined] for i in range(0, len(single), joined)]
    assert got == [list(chain.from_iterable(window)) for window in windows]


def test_seeds_and_epochs_differ() -> None:
    orders = {
        tuple(chain.from_iterable(batches(ResumableBatchSampler(50, 5, seed), epoch)))
        for seed in range(4)
        for epoch in range(4)
    }
    # torch's own sampler seeds with seed + epoch: epoch 1 of seed 0 would be epoch 0 of seed 1.
    assert len(orders) == 16


def test_unshuffled() -> None:
    order = ResumableBatchSampler(5, 2, shuffle=False, drop_last=False)
    assert batches(order) == batches(order, epoch=1) == [[0, 1], [2, 3], [4]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(length=SMALL, unit=st.integers(1, 6), parts=st.integers(1, 3), world=st.integers(1, 5), drop_last=st.booleans())
def test_ranks_together_are_one_process(length: int, unit: int, parts: int, world: int, drop_last: bool) -> None:
    batch_size = unit * parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "world_size", lambda: world)
        shares = []
        for rank in range(world):
            patch.setattr(sampler, "rank", lambda rank=rank: rank)
            order = ResumableBatchSampler(length, batch_size, seed=1, drop_last=drop_last, unit=unit)
            shares.append(batches(order, epoch=2))
            assert len(shares[-1]) == len(order)
            counts = [order.images_of_all(batch) for batch in range(len(order))]
    together = [set(chain.from_iterable(step)) for step in zip(*shares, strict=True)]
    one = ResumableBatchSampler(length, batch_size * world, seed=1, drop_last=drop_last, unit=unit * world)
    alone = batches(one, epoch=2)
    if not drop_last and len(alone[-1]) // world % unit == 0:
        # one image more would be one micro-batch more for some ranks, or the only one
        whole = len(alone[-1]) // world * world
        alone = [*alone[:-1], *([alone[-1][:whole]] if whole else [])]
    assert together == [set(batch) for batch in alone]
    assert counts == [len(batch) for batch in alone]
    sizes = [[len(batch) for batch in step] for step in zip(*shares, strict=True)]
    assert [sum(step) for step in sizes] == counts, "none twice"
    assert all(max(step) - min(step) <= (0 if drop_last else 1) for step in sizes)
    assert all(min(step) > 0 for step in sizes)
    assert all(len({-(-size // unit) for size in step}) == 1 for step in sizes), "as many micro-batches on each rank"


def test_lightning_takes_it_for_sharded() -> None:
    assert isinstance(ResumableBatchSampler(4, 2), DistributedSampler)


def test_indices_know_their_epoch_across_processes() -> None:
    batch = pickle.loads(pickle.dumps(EpochIndices([3, 1], epoch=7)))
    assert batch == [3, 1]
    assert batch.epoch == 7
    assert torch.tensor(batch).tolist() == [3, 1]


@pytest.mark.parametrize(("length", "batch_size"), [(0, 1), (4, 0)])
def test_refused(length: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"length={length}, batch_size={batch_size}"):
        ResumableBatchSampler(length, batch_size)
