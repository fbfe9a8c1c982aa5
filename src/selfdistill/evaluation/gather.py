"""The same figure on any number of processes: samples are shared out, gathered, and counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, Subset
from torch.utils.data.distributed import DistributedSampler

from selfdistill.distributed import all_gather_cat, rank, world_size
from selfdistill.evaluation.features import extract_features


def extract_over_ranks(
    embed: Callable[[Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """:func:`extract_features`, each process embedding its share; all get all rows, in the loader's order.

    Shares are strided and equally long, so that sharded networks, which talk in every forward pass, do so equally
    often; what fills them up is cut off. A loader that is not a plain sequential ``DataLoader`` is run through by every
    process.
    """
    if world_size() == 1 or not _divisible(loader):
        return extract_features(embed, loader, device)
    assert isinstance(loader, DataLoader)
    count, world = len(cast(Sized, loader.dataset)), world_size()
    positions = torch.arange(-(-count // world) * world)
    mine = positions[rank() :: world].clamp(max=count - 1)
    share = DataLoader(
        Subset(loader.dataset, mine.tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=torch.Generator(),
    )
    features, labels = extract_features(embed, share, device)
    order = torch.cat([positions[r::world] for r in range(world)]).argsort()[:count]
    gathered = [all_gather_cat(rows.to(device)).cpu()[order] for rows in (features, labels)]
    return gathered[0], gathered[1]


def _divisible(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and isinstance(loader.sampler, SequentialSampler)
        and loader.batch_size is not None
        and len(cast(Sized, loader.dataset)) >= world_size()
    )


def unpadded(rows: Tensor, sampler: Any) -> Tensor:
    """All ranks' ``rows`` ``[n, …]`` in the sampler's order, each sample once.

    A ``DistributedSampler`` deals out positions r, r + W, … and repeats samples until all ranks have equally
    many; the repeated ones stand behind the last sample and are cut off. With any other sampler each rank
    saw everything, and ``rows`` is returned as it is.
    """
    world = world_size()
    if world == 1 or not isinstance(sampler, DistributedSampler) or sampler.num_replicas != world:
        return rows
    everything = all_gather_cat(rows).unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)
    return everything[: len(cast(Sized, sampler.dataset))]
