"""Many GPUs: bytes against rings that are played through, memory against its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from selfdistill.costs import Part, StepCost, Units, ddp, fsdp2, units_of
from selfdistill.methods import DINO
from selfdistill.networks import build_backbone
from selfdistill.sharding import blocks

COST = StepCost(
    batch=8, micro_batch=8, student=Part(2400, 9600), beside=Part(240, 960), teacher=Part(2400, 9600), state=40,
    gradients=10560, optimizer=21120, views=1000, activations=50000, state_of=("center",), peak=0, teacher_flops=0,
    student_flops=0, loss_flops=0, backward_flops=0, gathered=3 * 9600,
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
    gathers = ring(COST.student.bytes, gpus, 2) + ring(COST.teacher.bytes, gpus, 1)
    gradients = ring(9600, gpus, 1) + ring(960, gpus, 2)
    assert share.sent == pytest.approx(gathers + gradients, abs=1)
    assert fsdp2(COST, gpus, UNITS, micro_batches=4).sent == pytest.approx(4 * share.sent, abs=4)


def test_micro_batches_that_run_twice_are_whole_in_backward_and_scattered_once() -> None:
    thrice = replace(COST, micro_batch=3, gathered=9 * 9600)
    plain, exact = fsdp2(COST, 8, UNITS), fsdp2(thrice, 8, UNITS)
    more = ring(9600, 8, 3 * 2 - 2) + ring(9600, 8, 3 - 1)  # student and teacher, of three micro-batches
    assert exact.sent == pytest.approx(plain.sent + more, abs=1)
    assert exact.memory == plain.memory - (3 * UNITS.block + UNITS.rest) + COST.student.bytes + COST.gradients


def test_fsdp2_memory_falls_to_what_is_whole() -> None:
    memory = [fsdp2(COST, gpus, UNITS).memory for gpus in (2, 8, 64, 10**9)]
    assert memory == sorted(memory, reverse=True)
    beside = 4 * 960  # with its gradients, and two numbers for each
    assert memory[-1] == 3 * 2000 + 1600 + beside + 40 + 1000 + 50000
    sharded = 9600 + 9600 + 9600 + 2 * 9600
    assert memory[0] - memory[-1] == sharded // 2


def test_one_gpu_talks_to_none() -> None:
    assert (ddp(COST, 1).sent, fsdp2(COST, 1, UNITS).sent) == (0, 0)
    assert ddp(COST, 1).memory == fsdp2(COST, 1, UNITS).memory == COST.total


def test_without_a_teacher_less_is_gathered() -> None:
    alone = replace(COST, teacher=Part(0, 0), gathered=2 * 9600)
    assert fsdp2(alone, 8, UNITS).sent == pytest.approx(fsdp2(COST, 8, UNITS).sent - ring(9600, 8, 1), abs=1)


def test_units_of_a_vision_transformer() -> None:
    with torch.device("meta"):
        module = DINO(build_backbone("small_vit"), hidden_dim=64, bottleneck_dim=16, prototypes=128)
    width = 128
    block = 12 * width**2 + 13 * width  # four projections with biases, an MLP of 4×, two norms
    student = sum(p.numel() for p in module.student.parameters())
    assert units_of(module) == Units(4 * block, 4 * (student - 4 * block))


class Nested(nn.Module):
    """Two blocks with a list of layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"layers": nn.Sequential(nn.Linear(3, 3))}) for _ in range(2))


@pytest.mark.parametrize(
    ("network", "count", "first"),
    [
        ("convnext_atto", 12, "stages.0.blocks.0"),
        ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0"),
        ("resnet18", 8, "layer1.0"),
        (Nested(), 2, "blocks.0"),
    ],
)
def test_blocks_lie_below_the_stages(network: str | nn.Module, count: int, first: str) -> None:
    with torch.device("meta"):
        built = timm.create_model(network) if isinstance(network, str) else network
    found = blocks(built)
    assert len(found) == count
    assert found[0] is built.get_submodule(first)
