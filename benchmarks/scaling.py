"""From 1 to 1,024 GPUs, simulated: what each holds, what it sends, and between which times a step lies.

python benchmarks/scaling.py

Nothing is measured here. Assumed: H100s of 989 TFLOP/s in bfloat16, of which a step reaches 40 %; 8 in a node, where
each sends 300 GB/s (two thirds of NVLink's 450), and between nodes 40 GB/s (of 400 Gbit/s a GPU); every collective
waits 20 µs for each doubling of the GPUs; the batch a GPU is constant. A ring is as slow as its slowest link. What is
sent is float32. Communication may hide behind computation not at all or wholly: real steps lie between. Stragglers
and data are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from runs import table, write_section

from selfdistill.config import check
from selfdistill.costs import Share, StepCost, Units, ddp, fsdp2, units_of
from selfdistill.costs.table import binary
from selfdistill.estimate import Planned

GPUS = tuple(4**k for k in range(6))
FLOPS = 0.4 * 989e12
NODE = 8
IN_NODE, BETWEEN = 300e9, 40e9
LATENCY = 20e-6
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP reduces at a time, torch's default."""

RUNS = {
    "ViT-L/16": ("vit_large", 64, False),
    "ViT-g/14": ("vit_giant", 32, False),
    "ViT-g/14, checkpointing": ("vit_giant", 32, True),
}


@dataclass(frozen=True)
class Times:
    """Seconds of one step."""

    compute: float
    talk: float

    @property
    def efficiency(self) -> tuple[float, float]:
        """Share of the time spent computing: nothing hidden, all hidden."""
        return self.compute / (self.compute + self.talk), self.compute / max(self.compute, self.talk)


def times(cost: StepCost, share: Share, collectives: int) -> Times:
    """A step's seconds on ``share.gpus``."""
    speed = IN_NODE if share.gpus <= NODE else BETWEEN
    waiting = collectives * LATENCY * math.log2(share.gpus)
    return Times(cost.flops / FLOPS, share.sent / speed + waiting)


def simulated(cost: StepCost, units: Units, depth: int) -> list[list[str]]:
    rows = []
    for gpus in GPUS:
        plain, sharded = ddp(cost, gpus), fsdp2(cost, gpus, units)
        # FSDP2: student forward, student backward, teacher, gradients, once for each unit
        both = (
            (plain, times(cost, plain, math.ceil(cost.gradients / BUCKET))),
            (
                sharded,
                times(cost, sharded, 4 * (depth + 1)),
            ),
        )
        row = [f"{gpus:,}", f"{gpus * cost.batch:,}"]
        for share, said in both:
            low, high = said.efficiency
            row += [binary(share.memory), binary(share.sent), f"{said.talk * 1e3:.0f}", f"{low:.0%} – {high:.0%}"]
        rows.append(row)
    return rows


def main() -> None:
    parts = []
    head = ["GPUs", "images a step"]
    for name in ("DDP", "FSDP2"):
        head += [f"{name}: memory a GPU", "sent a step", "talking, ms", "efficiency"]
    for name, (backbone, batch, checkpointing) in RUNS.items():
        patch = ["data.image.patch=14", "data.image.local_size=98"] if "/14" in name else []
        overrides = ["method=dinov2_like", f"backbone={backbone}", "data=imagenet", f"data.batch_size={batch}"]
        planned = Planned(check("train", [*overrides, "trainer.precision=bf16-mixed", *patch]).config)
        cost = planned.cost(checkpointing=checkpointing)
        depth = planned.module.student.backbone.depth
        rows = simulated(cost, units_of(planned.module), depth)
        said = f"{cost.flops / 1e12:,.0f} TFLOP a step of {batch} images a GPU: {cost.flops / FLOPS * 1e3:,.0f} ms"
        parts.append(f"**DINOv2, {name}**, {said}\n\n{table(head, rows)}")
    assumed = " ".join((__doc__ or "").split("\n\n")[2].split())
    text = "### From 1 to 1,024 GPUs, simulated\n\n`python benchmarks/scaling.py`. " + assumed + "\n\n"
    write_section("scaling", text + "\n\n".join(parts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
