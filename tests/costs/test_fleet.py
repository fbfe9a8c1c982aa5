"""Many GPUs: bytes against rings that are played through, memory against its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selfdistill.costs import Part, StepCost, Units, ddp, fsdp2, units_of
from selfdistill.methods import DINO
from selfdistill.networks import build_backbone

COST = StepCost(
    batch=8, student=Part(2400, 9600), beside=Part(240, 960), teacher=Part(2400, 9600), state=40, gradients=10560,
    optimizer=21120, views=1000, activations=50000, peak=0, teacher_flops=0, student_flops=0, loss_flops=0,
    backward_flops=0,
)  # fmt: skip
UNITS = Units(block=2000, rest=1600)


def ring(size: int, gpus: int, passes: int) -> float:
    """Bytes that one GPU sends when chunks of ``size`` go once round the ring, so many times."""
    sent = 0.0
    for _ in range(passes):
        for _ in range(gpus - 1):  # every step of the ring hands one chunk to the next GPU
            sent += size / gpus
    return sent


@pytest.mark.parametrize("gpus", [2, 3, 8, 1024])
def test_ddp_reduces_every_gradient_once(gpus: int) -> None:
    share = ddp(COST, gpus)
    # an all-reduce is a reduce-scatter and an all-gather
    assert share.sent == pytest.approx(ring(COST.gradients, gpus, 2), abs=1)
    assert share.memory == COST.total + COST.gradients


@pytest.mark.parametrize("gpus", [2, 8, 1024])
def test_fsdp2_gathers_and_scatters(gpus: int) -> None:
    share = fsdp2(COST, gpus, UNITS)
    blocks = COST.student.bytes + COST.beside.bytes - UNITS.rest
    gathers = ring(blocks, gpus, 2) + ring(UNITS.rest, gpus, 1) + ring(COST.teacher.bytes, gpus, 1)
    assert share.sent == pytest.approx(gathers + ring(COST.gradients, gpus, 1), abs=1)
    assert fsdp2(COST, gpus, UNITS, micro_batches=4).sent == pytest.approx(4 * share.sent, abs=4)


def test_fsdp2_memory_falls_to_what_is_whole() -> None:
    memory = [fsdp2(COST, gpus, UNITS).memory for gpus in (2, 8, 64, 10**9)]
    assert memory == sorted(memory, reverse=True)
    assert memory[-1] == 3 * 2000 + 1600 + 40 + 1000 + 50000
    sharded = 9600 + 960 + 9600 + 10560 + 21120
    assert memory[0] - memory[-1] == sharded // 2


def test_one_gpu_talks_to_none() -> None:
    assert (ddp(COST, 1).sent, fsdp2(COST, 1, UNITS).sent) == (0, 0)
    assert ddp(COST, 1).memory == fsdp2(COST, 1, UNITS).memory == COST.total


def test_without_a_teacher_less_is_gathered() -> None:
    alone = replace(COST, teacher=Part(0, 0))
    assert fsdp2(alone, 8, UNITS).sent == pytest.approx(fsdp2(COST, 8, UNITS).sent - ring(9600, 8, 1), abs=1)


def test_units_of_a_vision_transformer() -> None:
    with torch.device("meta"):
        module = DINO(build_backbone("small_vit"), hidden_dim=64, bottleneck_dim=16, prototypes=128)
    width = 128
    block = 12 * width**2 + 13 * width  # four projections with biases, an MLP of 4×, two norms
    trained = sum(p.numel() for n, p in module.named_parameters() if not n.startswith("teacher."))
    assert units_of(module) == Units(4 * block, 4 * (trained - 4 * block))
