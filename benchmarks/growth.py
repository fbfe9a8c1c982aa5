"""How time and memory grow with each size: exponents fitted to measurements, beside those of theory."""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bare import BareStep
from measure import added, machine
from peers_steps import BOTH, STUDENT, TEACHER, crops
from runs import table, write_section
from torch import Tensor, nn

from selfdistill.allocator import keep_freed_memory
from selfdistill.config import check
from selfdistill.costs import ddp, fsdp2, units_of
from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.prototypes import prototype_cross_entropy
from selfdistill.estimate import Planned
from selfdistill.evaluation import knn_predict
from selfdistill.methods import BYOL, DINO, MoCo, MultiHead
from selfdistill.networks import SmallCNN
from selfdistill.optim import OptimizerRecipe
from selfdistill.targets import sinkhorn
from selfdistill.views import Views

Work = Callable[[], Any]


@dataclass(frozen=True)
class Growth:
    """Work that depends on one size.

    Attributes:
        name: of the work, and of the size.
        sizes: each twice the one before.
        build: makes the work of a size.
        time: exponent of the time in theory.
        memory: exponent of what a call adds to the process, in theory.
    """

    name: str
    sizes: Sequence[int]
    build: Callable[[int], Work]
    time: float
    memory: float


def step(module: Any, views: Views) -> Work:
    bare = BareStep(module, OptimizerRecipe("sgd", 1e-3).build(module.trained_parameters(), fused=True))
    return lambda: bare(views)


def small() -> nn.Module:
    return SmallCNN(3)


def byol(batch: int) -> Work:
    return step(BYOL(small(), hidden_dim=512, out_dim=128), Views(crops(batch, 32, 32), (BOTH, BOTH)))


def dino(local: int) -> Work:
    views = Views(crops(32, 32, 32, *[16] * local), (BOTH, BOTH, *[STUDENT] * local))
    return step(DINO(small(), hidden_dim=512, prototypes=1024), views)


def heads(count: int) -> Work:
    module = MultiHead(small(), heads=count, hidden_dim=512, out_dim=128)
    return step(module, Views(crops(64, 32, 32), (BOTH, BOTH)))


def moco(length: int) -> Work:
    views = Views(crops(32, 32, 32), (STUDENT, TEACHER))
    return step(MoCo(small(), hidden_dim=512, queue_length=length), views)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def loss(prototypes: int = 16384, batch: int = 16) -> Work:
    student, teacher = drawn(10, batch, prototypes).requires_grad_(), drawn(2, batch, prototypes)

    def run() -> None:
        student.grad = None
        fused_cross_entropy(student, teacher, student_temperature=0.1, teacher_temperature=0.04).backward()

    return run


def head_and_loss(batch: int) -> Work:
    features, weight, teacher = drawn(10, batch, 256).requires_grad_(), drawn(16384, 256).requires_grad_(), None
    teacher = drawn(2, batch, 16384)

    def run() -> None:
        features.grad = weight.grad = None
        prototype_cross_entropy(
            features, weight, teacher, student_temperature=0.1, teacher_temperature=0.04, normalize=True
        ).backward()

    return run


def balanced(prototypes: int) -> Work:
    scores = drawn(256, prototypes)
    return lambda: sinkhorn(scores, epsilon=0.05, iterations=3)


def neighbours(rows: int) -> Work:
    bank, queries = drawn(rows, 256), drawn(512, 256)
    labels = torch.arange(rows) % 100
    return lambda: knn_predict(bank, labels, queries, k=20)


GROWTHS = [
    Growth("BYOL step, batch", (64, 128, 256, 512), byol, 1, 1),
    Growth("DINO step, local crops (2 global)", (4, 8, 16, 32), dino, 1, 1),
    Growth("step of H heads, H", (4, 8, 16, 32), heads, 1, 1),
    Growth("MoCo step, queue", (2**14, 2**15, 2**16, 2**17), moco, 1, 0),
    Growth("DINO loss, K", (2**13, 2**14, 2**15, 2**16), loss, 1, 1),
    Growth("DINO loss, batch", (16, 32, 64, 128), lambda batch: loss(batch=batch), 1, 1),
    Growth("DINO head and loss in chunks, batch", (16, 32, 64, 128), head_and_loss, 1, 0),
    Growth("Sinkhorn, K", (2**12, 2**13, 2**14, 2**15), balanced, 1, 1),
    Growth("k-NN, bank", (2**14, 2**15, 2**16, 2**17), neighbours, 1, 1),
]


def seconds(growth: Growth, repeats: int) -> list[float]:
    """Median processor seconds of a call at each size, the sizes taken in turn."""
    works = [growth.build(size) for size in growth.sizes]
    found: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 2):
        for work, times in zip(works, found, strict=True):
            start = time.process_time()
            work()
            if turn > 1:  # the first are for warming up, the allocator too
                times.append(time.process_time() - start)
    return [statistics.median(times) for times in found]


def peaks(growth: Growth) -> list[float]:
    """MiB that a call adds, at each size in a process of its own."""
    commands = [[sys.executable, __file__, "--peak", growth.name, str(size)] for size in growth.sizes]
    return [float(subprocess.run(c, check=True, capture_output=True, text=True).stdout) for c in commands]


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the logarithms, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values]
    return statistics.linear_regression(x, y).slope


def over_ranks() -> str:
    """A DINOv2 ViT-L step on more and more GPUs, the batch of each constant, from the cost table's formulas."""
    ranks = (16, 64, 256, 1024)
    planned = Planned(
        check("train", ["method=dinov2_like", "backbone=vit_large", "data=imagenet", "data.batch_size=64"]).config
    )
    cost, units = planned.cost(checkpointing=False), units_of(planned.module)
    rows = []
    for name, shares in (
        ("DDP", [ddp(cost, count) for count in ranks]),
        ("FSDP2", [fsdp2(cost, count, units) for count in ranks]),
    ):
        sent, memory = ([f(share) / 2**20 for share in shares] for f in (lambda s: s.sent, lambda s: s.memory))
        rows.append(
            [
                f"{name}, ranks",
                " ".join(f"{count:,}" for count in ranks),
                " ".join(f"{value:,.0f}" for value in sent),
                f"{exponent(ranks, sent):.2f} (0)",
                " ".join(f"{value:,.0f}" for value in memory),
                f"{exponent(ranks, memory):.2f} (0)",
            ]
        )
    header = ["work, size", "sizes", "MiB sent by a rank", "exponent (theory)", "MiB of a rank", "exponent (theory)"]
    return (
        "`python benchmarks/growth.py --only ranks`: simulated, nothing measured (a DINOv2 step of a ViT-L; more in "
        "the section on 1 to 1,024 GPUs).\n\n" + table(header, rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("work", "ranks"))
    parser.add_argument("--peak", nargs=2, metavar=("WORK", "SIZE"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.peak:  # as the commands do; the memory of one call is measured without
        keep_freed_memory()
    if given.peak:
        name, size = given.peak
        (growth,) = (growth for growth in GROWTHS if growth.name == name)
        work = growth.build(int(size))
        gc.collect()
        print(added(work))
        return
    if given.only != "work":
        write_section("growth ranks", f"### Growth over ranks\n\n{over_ranks()}")
    if given.only == "ranks":
        return
    rows = []
    for growth in GROWTHS:
        times, memory = seconds(growth, given.repeats), peaks(growth)
        rows.append(
            [
                growth.name,
                " ".join(f"{size:,}" for size in growth.sizes),
                " ".join(f"{t * 1e3:.3g}" for t in times),
                f"{exponent(growth.sizes, times):.2f} ({growth.time:g})",
                " ".join(f"{m:.0f}" for m in memory),
                f"{exponent(growth.sizes, memory):.2f} ({growth.memory:g})",
            ]
        )
        print(*rows[-1], sep=" | ", file=sys.stderr)
    header = ["work, size", "sizes", "ms", "exponent of time (theory)", "MiB added", "exponent of memory (theory)"]
    write_section(
        "growth",
        f"### Growth\n\n`python benchmarks/growth.py`: {machine()}; processor time of a call, median of "
        f"{given.repeats}, the C library keeping what is freed, as in our commands (without it, arrays of 32 MiB and "
        "more are zeroed anew at each use, which bends the curves upwards); memory is what a first call adds to a "
        "process of its own that holds the inputs. Exponents are fitted: what does not depend on the size lowers them, "
        "caches that no longer hold the arrays raise those of time.\n\n" + table(header, rows),
    )


if __name__ == "__main__":
    main()
