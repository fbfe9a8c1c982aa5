"""DINO's head and loss: plain, with the fused loss, and in chunks; time in turn, memory in processes of their own.

python benchmarks/head.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import machine, peak
from runs import table, write_section
from torch import Tensor

from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.prototypes import prototype_cross_entropy

CROPS, TEACHER, PROTOTYPES, WIDTH = 10, 2, 65536, 256
BATCHES = (16, 64)
REPEATS = 7
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(features: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
    """As the paper's code has it: log-softmax of all logits, a product for each pair."""
    log_p = F.log_softmax(F.linear(features, F.normalize(weight)) / STUDENT_TEMPERATURE, dim=-1)
    with torch.no_grad():
        q = F.softmax(teacher / TEACHER_TEMPERATURE, dim=-1)
    pairs = [-(q[g] * log_p[v]).sum(-1).mean() for g in range(TEACHER) for v in range(CROPS) if v != g]
    return torch.stack(pairs).mean()


def fused(features: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
    return fused_cross_entropy(
        F.linear(features, F.normalize(weight)), teacher, student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=TEACHER_TEMPERATURE,
    )  # fmt: skip


def chunks(features: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
    return prototype_cross_entropy(
        features, weight, teacher, student_temperature=STUDENT_TEMPERATURE, teacher_temperature=TEACHER_TEMPERATURE,
        normalize=True,
    )  # fmt: skip


LOSSES: dict[str, Loss] = {loss.__name__: loss for loss in (plain, fused, chunks)}


def work(name: str, batch: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(CROPS, batch, WIDTH, generator=generator), dim=-1).requires_grad_()
    weight = torch.randn(PROTOTYPES, WIDTH, generator=generator).requires_grad_()
    teacher = torch.randn(TEACHER, batch, PROTOTYPES, generator=generator) * 0.1

    def run() -> Tensor:
        value = LOSSES[name](features, weight, teacher)
        value.backward()
        features.grad = weight.grad = None  # so that the next call makes them anew
        return value.detach()

    return run


def row(batch: int) -> list[str]:
    works = {name: work(name, batch) for name in LOSSES}
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    values = {}
    for turn in range(REPEATS + 1):
        for name, run in works.items():
            start = time.process_time()
            values[name] = run()
            if turn:  # the first is for warming up
                seconds[name].append(time.process_time() - start)
    for value in values.values():
        torch.testing.assert_close(value, values["plain"], rtol=1e-4, atol=0)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    command = [sys.executable, __file__, "--peak", str(batch)]
    peaks = {n: float(subprocess.run([*command, n], check=True, capture_output=True, text=True).stdout) for n in LOSSES}
    memory = [f"{peaks[name]:.0f}" for name in LOSSES]
    relative = [f"{peaks[name] / peaks['plain']:.2f}" for name in ("fused", "chunks")]
    return [str(batch), *memory, *relative, *(f"{middle[name] / middle['plain']:.2f}" for name in ("fused", "chunks"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", nargs=2, metavar=("BATCH", "LOSS"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        batch, name = given.peak
        print(peak(work(name, int(batch))))
        return
    header = ["B", "plain, MiB", "fused loss, MiB", "in chunks, MiB", "fused / plain", "chunks / plain",
              "time, fused / plain", "time, chunks / plain"]  # fmt: skip
    write_section(
        "head",
        f"### DINO's head and loss\n\n`python benchmarks/head.py`: {machine()}; {CROPS} crops of B images, K = "
        f"{PROTOTYPES:,}, {WIDTH} features. MiB that forward and backward add to a process, the prototypes' gradient "
        f"({PROTOTYPES * WIDTH // 2**18}) included; asked of the chunks: at most "
        f"0.25 of plain, in 1.15 times its time. Processor time, median of {REPEATS} turns.\n\n"
        + table(header, [row(batch) for batch in BATCHES]),
    )


if __name__ == "__main__":
    main()
