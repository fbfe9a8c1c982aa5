"""A step on many GPUs: what each holds and sends, under DDP and under FSDP2.

Counted are tensors alone. Left out: the memory of CUDA and NCCL themselves, the fragments that an allocator leaves, and
the few kilobytes of centers and counts that ranks exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfdistill.costs.gathers import parameter_bytes
from selfdistill.costs.step import StepCost
from selfdistill.methods import SelfDistillModule
from selfdistill.sharding import blocks


@dataclass(frozen=True)
class Share:
    """What one of ``gpus`` holds, and sends in an optimizer step.

    Attributes:
        gpus: N.
        memory: bytes.
        sent: bytes; as many are received.
    """

    gpus: int
    memory: int
    sent: int


@dataclass(frozen=True)
class Units:
    """How :func:`selfdistill.sharding.shard` cuts the student: each block of the backbone, and the rest.

    Attributes:
        block: bytes of the largest block.
        rest: bytes outside the blocks.
    """

    block: int
    rest: int


def units_of(module: SelfDistillModule[Any, Any]) -> Units:
    """Units of the student."""
    sizes = [parameter_bytes(block) for block in blocks(module.student.backbone)]
    return Units(max(sizes, default=0), parameter_bytes(module.student) - sum(sizes))


def ddp(cost: StepCost, gpus: int) -> Share:
    """Everything on every GPU, and the gradients a second time in the buckets that travel.

    A ring sends 2·(N−1)/N of the gradients, once an optimizer step, whatever the number of micro-batches.
    """
    if gpus == 1:
        return Share(1, cost.total, 0)
    return Share(gpus, cost.total + cost.gradients, round(2 * (gpus - 1) / gpus * cost.gradients))


def fsdp2(cost: StepCost, gpus: int, units: Units, *, micro_batches: int = 1) -> Share:
    """Both networks, gradients and optimizer in N shards; two blocks at a time are whole, and what is trained beside.

    In each micro-batch the student is gathered forward and again backward, the teacher once, a backbone once for each
    size of crops; and gradients are reduced and scattered: each GPU sends (N−1)/N of all of them. Gradients of what is
    trained beside go round as under DDP.

    Under ``accumulate=exact`` one backward pass goes over all micro-batches: the student that runs again in it, and its
    gradients, are whole until its end.
    """
    if gpus == 1:
        return Share(1, cost.total, 0)
    beside = cost.beside.bytes
    # its gradients and their optimizer: all that is trained is in float32
    stays = beside + round(beside / cost.gradients * (cost.gradients + cost.optimizer))
    everything = cost.student.bytes + cost.teacher.bytes + beside + cost.gradients + cost.optimizer
    parts = -(-cost.batch // cost.micro_batch)
    # the block at work with its gradient, the next one on its way, and what lies outside the blocks
    at_work = 3 * units.block + units.rest if parts == 1 else cost.student.bytes + cost.gradients
    memory = (everything - stays) // gpus + at_work + stays + cost.state + cost.views + cost.activations
    moved = cost.gathered + cost.gradients + beside
    return Share(gpus, memory, round(micro_batches * (gpus - 1) / gpus * moved))
