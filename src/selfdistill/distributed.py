"""Collectives over the processes of a run; with a single process every function here is the identity.

Two families. The plain functions carry no gradient: they serve state and targets. Those that end in `_grad`
are differentiable and follow the convention of `DistributedDataParallel`, which averages the gradients of the
ranks: after that average, parameters hold the gradient of the mean of the ranks' losses.

Every rank must make the same calls in the same order: an empty tensor takes part, a skipped call hangs the
others.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather_cat",
    "all_gather_cat_grad",
    "all_reduce_max",
    "all_reduce_mean_grad",
    "all_reduce_sum",
    "rank",
    "world_size",
]

# under the name that torch gives it from 2.14 on
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def world_size() -> int:
    """Number of processes, 1 when `torch.distributed` is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process in [0, `world_size()`), 0 when `torch.distributed` is not initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Element-wise sum over ranks, detached; `tensor` is left as it is."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Element-wise maximum over ranks, detached; `tensor` is left as it is."""
    if world_size() == 1:
        return tensor.detach()
    peak = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return peak


def all_gather_cat(tensor: Tensor) -> Tensor:
    """Rows of all ranks, in rank order, detached.

    The number of rows may differ between ranks, also be 0; it is exchanged first, which makes the host wait
    for the device once a call.

    Args:
        tensor: [N, ...], with the same trailing shape and dtype on every rank.

    Returns:
        [sum of the ranks' N, ...], the same on every rank.
    """
    if world_size() == 1:
        return tensor.detach()
    return _gather(tensor.detach(), _row_counts(tensor))


def all_reduce_mean_grad(tensor: Tensor) -> Tensor:
    """Element-wise mean over ranks, differentiable, for a loss that has the same value on every rank.

    The backward pass is the identity: each rank holds 1/W of the mean, and the W equal losses make up for it,
    so that the average taken by DDP is the gradient of the loss. Dividing by W once more would be a bug.
    """
    return tensor if world_size() == 1 else _AllReduceMean.apply(tensor)


def all_gather_cat_grad(tensor: Tensor) -> Tensor:
    """`all_gather_cat` with a gradient: backward sums what all ranks' losses ask of the rows of this one."""
    return tensor if world_size() == 1 else _AllGatherCat.apply(tensor)


class _AllReduceMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor).div_(world_size())

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return grad[0]


class _AllGatherCat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        counts = _row_counts(tensor)
        ctx.start, ctx.count = sum(counts[: rank()]), counts[rank()]
        return _gather(tensor, counts)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return all_reduce_sum(grad[0]).narrow(0, ctx.start, ctx.count)


def _row_counts(tensor: Tensor) -> list[int]:
    count = torch.full((1,), tensor.shape[0], device=tensor.device)
    counts = count.new_empty(world_size())
    _all_gather(counts, count)
    return counts.tolist()


def _gather(tensor: Tensor, counts: list[int]) -> Tensor:
    # Collectives want equal shapes: short ranks are padded, and the padding is cut away on arrival.
    longest = max(counts)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    everything = tensor.new_empty(len(counts) * longest, *tensor.shape[1:])
    _all_gather(everything, padded)
    if min(counts) == longest:
        return everything
    return torch.cat([everything[i * longest : i * longest + count] for i, count in enumerate(counts)])
