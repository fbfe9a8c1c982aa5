"""A step on many GPUs: what each holds and sends, under DDP and under FSDP2.

Counted are tensors alone. Left out: the memory of CUDA and NCCL themselves, the fragments that an allocator leaves, and
the few kilobytes of centers and counts that ranks exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from selfdistill.costs.step import StepCost
from selfdistill.methods import SelfDistillModule


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
    """How FSDP2 cuts a network: each block of the backbone, and the rest as one.

    Attributes:
        block: bytes of the largest block.
        rest: bytes outside the blocks, which stay whole from forward to backward.
    """

    block: int
    rest: int


def units_of(module: SelfDistillModule[Any, Any]) -> Units:
    """Units of the student and of what is trained beside it."""
    whole = sum(p.numel() * p.element_size() for n, p in module.named_parameters() if not n.startswith("teacher."))
    lists = (m for m in module.student.backbone.modules() if isinstance(m, nn.ModuleList | nn.Sequential))
    sizes = max(
        ([sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks] for blocks in lists),
        key=sum,
        default=[],
    )
    return Units(max(sizes, default=0), whole - sum(sizes))


def ddp(cost: StepCost, gpus: int) -> Share:
    """Everything on every GPU, and the gradients a second time in the buckets that travel.

    A ring sends 2·(N−1)/N of the gradients, once an optimizer step, whatever the number of micro-batches.
    """
    if gpus == 1:
        return Share(1, cost.total, 0)
    return Share(gpus, cost.total + cost.gradients, round(2 * (gpus - 1) / gpus * cost.gradients))


def fsdp2(cost: StepCost, gpus: int, units: Units, *, micro_batches: int = 1) -> Share:
    """Parameters, gradients and optimizer in N shards, the teacher's too; two blocks at a time are whole.

    In each micro-batch the student's blocks are gathered forward and again backward, the rest and the teacher once, and
    gradients are reduced and scattered: each GPU sends (N−1)/N of all of them.
    """
    if gpus == 1:
        return Share(1, cost.total, 0)
    student = cost.student.bytes + cost.beside.bytes
    sharded = student + cost.teacher.bytes + cost.gradients + cost.optimizer
    # the block at work with its gradient, the next one on its way, and what lies outside the blocks
    whole = 3 * units.block + units.rest
    memory = sharded // gpus + whole + cost.state + cost.views + cost.activations
    moved = 2 * student - units.rest + cost.teacher.bytes + cost.gradients
    return Share(gpus, memory, round(micro_batches * (gpus - 1) / gpus * moved))
