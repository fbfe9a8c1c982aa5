"""Networks whose parameters are spread over the processes (FSDP2), and lists of tensors of which some are.

torch's ``fully_shard`` does the sharding. What is here says what is sharded, and computes over the local shards: what
goes through all parameters at once (clipping, LARS, the teacher's average, monitors) needs no communication but for
the norms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from selfdistill.distributed import all_reduce_sum, world_size

__all__ = ["blocks", "consolidated", "is_sharded", "like", "local", "norms", "over_shards", "shard", "whole"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# `blocks.3`, `stages.1.blocks.0`, `layer1.0`, `stages.2`: as timm's networks and ours name what repeats
_BLOCK = re.compile(r"(?:^|\.)(?:blocks?|layers?\d*|stages?)\.\d+$")
_STAGE = re.compile(r"(?:^|\.)stages?\.\d+$")
_OWN_BLOCK = re.compile(r"blocks?\.\d+$")


def shard(module: nn.Module, networks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard ``networks`` over ``mesh``, block by block; all else in ``module`` that is trained stays whole.

    Each network is one that is called as a whole: its blocks are gathered when they are called, everything else of it
    when it is called, and both are let go after their forward pass, with or without gradient: a teacher that kept its
    gathered weights would go on teaching with the old ones after it moved. The gradients of what stays whole are
    averaged over the processes, as those of the shards are.

    Args:
        module: built alike (from one seed) in all processes.
        networks: parts of it, none inside another.
        mesh: one dimension.
    """
    for network in networks:
        if not any(True for _ in network.parameters()):
            continue
        for block in blocks(network):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.register_post_accumulate_grad_hook(_average)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost repeated parts that have parameters, in order; those of a stage in the place of the stage."""
    found = {name: part for name, part in network.named_modules() if _BLOCK.search(name)}
    below = {name: part for name, part in found.items() if not _is_stage(name, found)}
    outer = [part for name, part in below.items() if not any(name.startswith(f"{other}.") for other in below)]
    return [part for part in outer if any(True for _ in part.parameters())]


def _is_stage(name: str, found: Iterable[str]) -> bool:
    """Whether a part holds others and is called a stage, or has blocks of its own (Swin's ``layers.0.blocks.0``)."""
    held = [other.removeprefix(f"{name}.") for other in found if other.startswith(f"{name}.")]
    if _STAGE.search(name):
        return bool(held)
    return any(_OWN_BLOCK.match(other) for other in held)


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter is spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``, in the same memory: its shard, or all where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def over_shards(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Sums over whole tensors from ``values [n]``, the sums over what this process holds of each of n ``tensors``."""
    spread = [isinstance(tensor, DTensor) for tensor in tensors]
    if not any(spread):
        return values
    mask = torch.tensor(spread, device=values.device)
    return torch.where(mask, all_reduce_sum(values), values)


def norms(tensors: Sequence[Tensor], held: Sequence[Tensor] | None = None) -> Tensor:
    """L2 norm of each whole tensor, ``[n]``; or of others spread alike, whose parts here are ``held``."""
    found = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors] if held is None else list(held)))
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return found
    return over_shards(found.square(), tensors).sqrt()


def whole(tree: object) -> object:
    """Nested containers with every sharded tensor gathered, on the CPU; every process has to call.

    Rank 0 has the result; elsewhere empty tensors stand in the place of those that were gathered.
    """
    if isinstance(tree, DTensor):
        gathered = tree.full_tensor().detach()
        return gathered.cpu() if dist.get_rank() == 0 else gathered.new_empty(0, device="cpu")
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value) for value in tree)
    return tree


def consolidated(module: ModuleT, build: Callable[[], ModuleT]) -> ModuleT:
    """``module`` without shards: on rank 0 what ``build`` makes, with its state; elsewhere itself.

    Every process has to call. A module that is not sharded is returned as it is.
    """
    if not is_sharded(module):
        return module
    state: Any = whole(module.state_dict())
    if dist.get_rank():
        return module
    plain = build()
    plain.load_state_dict(state)
    return plain


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """The whole ``value`` spread as ``tensor`` is, without communication; itself where that is not sharded."""
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    parts = value.chunk(tensor.device_mesh.size())
    rank = tensor.device_mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else value[:0]
    spread: DTensor = DTensor.from_local(
        part.to(tensor.device), tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride()
    )
    return spread


def _average(parameter: Tensor) -> None:
    # after each micro-batch: what was averaged before stays what it is
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad.div_(world_size())
