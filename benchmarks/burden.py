"""What eases the burden: a DINO step in micro-batches and with activation checkpointing; and predicted peaks, measured.

python benchmarks/burden.py             everything, each cell in a process of its own; some 6 GiB, a quarter of an hour
python benchmarks/burden.py --size 96   smaller crops for a smaller machine: 1.5 GiB, five minutes
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from bare import BareStep
from measure import added, machine
from runs import table, write_section

from selfdistill.allocator import keep_freed_memory
from selfdistill.costs import StepCost, meta_views, step_cost
from selfdistill.costs.table import binary
from selfdistill.costs.trace import Trace
from selfdistill.methods import BYOL, DINO, SelfDistillModule
from selfdistill.networks import build_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.views import CropSpec, ViewRecipe, Views
from selfdistill.views.specs import Augment

Module = SelfDistillModule[Any, Any]
_RECIPE = OptimizerRecipe("adamw", 1e-4)


def crops(size: int, local: int = 0, count: int = 0) -> ViewRecipe:
    more = [CropSpec(local, Augment(), count, ("student",))] if count else []
    return ViewRecipe([CropSpec(size, Augment(), 2), *more])


@dataclass(frozen=True)
class Job:
    """A method, its crops, the images of an optimizer step, and those that networks see at a time (None: all)."""

    build: Callable[[], Module]
    recipe: ViewRecipe
    batch: int
    exact: int | None = None


JOBS = {
    "dino_vits": Job(lambda: DINO("vit_small_patch16_224", optimizer=_RECIPE), crops(224), 64),
    "dino_vitt": Job(lambda: DINO("vit_tiny_patch16_224", optimizer=_RECIPE), crops(224, 96, 2), 16),
    "byol_r18": Job(lambda: BYOL(build_backbone("resnet18", small_stem=True), optimizer=_RECIPE), crops(32), 128),
}

JOBS |= {f"{name}_exact": replace(JOBS[name], exact=JOBS[name].batch // 4) for name in ("byol_r18", "dino_vitt")}


def checkpointed(job: Job, on: bool) -> Module:
    module = job.build()
    module.micro_batch_size = job.exact
    module.student.backbone.checkpoint_activations(on)
    return module


def predicted(job: Job, micro_batches: int, checkpointing: bool) -> StepCost:
    with torch.device("meta"):
        module = checkpointed(job, checkpointing)
    return step_cost(module, meta_views(job.recipe, 3, job.batch // micro_batches))


class Steps:
    """Optimizer steps in Lightning's order: the old gradients live until the first micro-batch has gone forward."""

    def __init__(self, job: Job, checkpointing: bool) -> None:
        self.recipe = job.recipe
        module = checkpointed(job, checkpointing)
        self.bare = BareStep(module, _RECIPE.build(module.trained_parameters(), module.parameter_roles(), fused=True))

    def __call__(self, batch: int, micro_batches: int) -> None:
        module, optimizer = self.bare.module, self.bare.optimizer
        for part in range(micro_batches):
            loss = module.training_step(self.views(batch // micro_batches), part)["loss"] / micro_batches
            if part == 0:
                optimizer.zero_grad()
            loss.backward()
            del loss
            module.on_after_backward()
        optimizer.step()
        if self.bare.ema is not None:
            self.bare.ema.update(self.bare.momentum)
        for state in self.bare.staged:
            state.commit()

    def views(self, batch: int) -> Views:
        return Views([torch.randn(batch, 3, s.size, s.size) for s in self.recipe.flat], self.recipe.roles)

    def held(self) -> int:
        """Bytes of networks, gradients and optimizer."""
        module, states = self.bare.module, self.bare.optimizer.state.values()
        tensors = [*module.parameters(), *module.buffers(), *(v for s in states for v in s.values())]
        return sum(t.nbytes for t in [*tensors, *(p.grad for p in module.parameters() if p.grad is not None)])


def cell(name: str, micro_batches: int, checkpointing: bool, *, traced: bool, kept: bool) -> dict[str, float]:
    """Peak bytes and processor seconds of one step, after one of a few images that takes what libraries take.

    ``traced``: also the bytes of tensors in another step. ``kept``: freed memory stays with the process.
    """
    if kept:
        keep_freed_memory()
    torch.manual_seed(0)
    job = JOBS[name]
    steps = Steps(job, checkpointing)
    steps(4, 1)
    held = steps.held()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    start = time.process_time()
    grown = added(lambda: steps(job.batch, micro_batches))
    seconds = time.process_time() - start
    return {"peak": held + grown * 2**20, "seconds": seconds, "tensors": tensors(steps, job) if traced else 0}


def tensors(steps: Steps, job: Job) -> int:
    """Bytes of tensors alive at most in a step of one batch, whatever kernels work in left out."""
    old = [p.grad for p in steps.bare.module.parameters() if p.grad is not None]
    held = steps.held() - sum(gradient.nbytes for gradient in old)
    networks = [*steps.bare.module.parameters(), *steps.bare.module.buffers()]
    with Trace() as trace:
        trace.ignore(*networks)
        trace.adopt(*old)
        del old
        steps(job.batch, 1)
    return held + trace.peak


def in_own_process(
    name: str, micro_batches: int, checkpointing: bool, *, traced: bool = False, kept: bool = False
) -> dict[str, float]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(cell, (name, micro_batches, checkpointing), {"traced": traced, "kept": kept})
    print(name, micro_batches, checkpointing, kept, found, file=sys.stderr, flush=True)
    return found


def burden() -> str:
    job, rows = JOBS["dino_vits"], []
    cells = [(micro, on) for on in (False, True) for micro in (1, 4, 16)]
    found = {key: in_own_process("dino_vits", *key) for key in cells}
    first = found[1, False]
    for micro, on in cells:
        said, cost = found[micro, on], predicted(job, micro, on)
        rows.append([str(micro), str(job.batch // micro), "on" if on else "off", binary(said["peak"]),
                     f"{said['peak'] / first['peak']:.2f}", f"{said['seconds'] / first['seconds']:.2f}",
                     f"{micro * cost.flops / predicted(job, 1, False).flops:.2f}",
                     f"{said['peak'] / cost.peak:.3f}", f"{said['peak'] / cost.total:.3f}"])  # fmt: skip
    header = ["micro-batches", "images in each", "checkpointing", "peak", "first = 1", "processor time, first = 1",
              "FLOPs, first = 1", "peak measured / predicted", "peak / sum of the table"]  # fmt: skip
    return table(header, rows)


def peaks() -> str:
    rows = []
    steps = (("byol_r18", "BYOL, ResNet-18, 2×32 px"), ("dino_vitt", "DINO, ViT-Ti/16, 2×224 + 2×96 px"))
    exact = ((f"{name}_exact", f"{said}, accumulate=exact in 4 micro-batches") for name, said in steps)
    for name, said in (*steps, *exact):
        found, cost = in_own_process(name, 1, False, traced=True), predicted(JOBS[name], 1, False)
        kept = in_own_process(name, 1, False, kept=True)
        rows.append([said, str(JOBS[name].batch), binary(cost.total), binary(cost.peak), binary(found["tensors"]),
                     binary(found["peak"]), f"{found['tensors'] / cost.total:.3f}",
                     f"{found['tensors'] / cost.peak:.3f}", f"{found['peak'] / cost.total:.3f}",
                     f"{found['peak'] / cost.peak:.3f}", f"{kept['peak'] / cost.total:.3f}",
                     f"{kept['seconds'] / found['seconds']:.2f}"])  # fmt: skip
    header = ["step", "images", "sum of the table", "peak predicted", "peak of tensors", "peak of the process",
              "tensors / sum", "tensors / predicted", "process / sum", "process / predicted",
              "process that keeps freed memory / sum", "its time"]  # fmt: skip
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the burden's crops in pixels")
    parser.add_argument("--only", choices=("peaks", "burden"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    JOBS["dino_vits"] = replace(JOBS["dino_vits"], recipe=crops(given.size))
    how = (
        f"{machine()}; one optimizer step in a process of its own, float32, AdamW, in Lightning's order. Memory is the "
        "tensors held before the step and what the process grows by."
    )
    head = "`python benchmarks/burden.py`"
    if given.only != "burden":
        write_section("peaks", f"### Peaks predicted and measured\n\n{head}: {how}\n\n{peaks()}")
    if given.only != "peaks":
        what = f"DINO, ViT-S/16, K = 65,536, 2×{given.size} px without local crops, 64 images a step"
        title = "### Micro-batches and activation checkpointing"
        write_section(
            "burden", f"{title}\n\n`python benchmarks/burden.py --size {given.size}`: {what}; {how}\n\n{burden()}"
        )


if __name__ == "__main__":
    main()
