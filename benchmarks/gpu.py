"""Steps on one GPU: time, phases, memory and model FLOPs utilisation. Needs torch, lightning, timm and torchvision.

PYTHONPATH=src python benchmarks/gpu.py                       all jobs, bf16, compiled, on the GPU
PYTHONPATH=src python benchmarks/gpu.py --no-compile --only dino_vits
PYTHONPATH=src python benchmarks/gpu.py --tiny                that it runs, on a CPU: no figure of it means anything

Where lightly can be imported its step stands beside ours, on the same card, in bf16 and not compiled, as its examples
are; on the smallest images also the step with its views, which ours makes on the card and theirs in workers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bare import BareStep
from gpu_beside import Step, callbacks_share, peer_step, peer_views
from gpu_timing import PHASES, Timer, per_step
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.data.images import IMAGENET_MEAN, IMAGENET_STD
from selfdistill.methods import BYOL, DINO, DINOv2, SelfDistillModule
from selfdistill.networks.timm_backbones import build_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.views import RawBatch, ViewRecipe, Views, batched_views, named_recipe
from selfdistill.views.recipes import dinov2

Module = SelfDistillModule[Any, Any]


@dataclass(frozen=True)
class Job:
    """What is trained: a method, its views, the size of the stored images and of the batch."""

    build: Callable[[], Module]
    recipe: ViewRecipe
    stored: int
    batch: int


def jobs(tiny: bool) -> dict[str, Job]:
    """The issue's four; tiny ones have other networks and sizes."""
    size, stored, batches = (112, 128, (2, 2, 2, 2)) if tiny else (224, 256, (128, 64, 32, 512))
    resnet, vit = ("resnet18", "vit_tiny_patch16_224") if tiny else ("resnet50", "vit_small_patch16_224")
    base, prototypes = (vit, 512) if tiny else ("vit_base_patch16_224", 65536)

    def small() -> BYOL:
        return BYOL(build_backbone("resnet18", small_stem=True))

    return {
        "byol_r50": Job(lambda: BYOL(resnet), named_recipe("byol", size), stored, batches[0]),
        "dino_vits": Job(lambda: DINO(vit, prototypes=prototypes), named_recipe("dino", size), stored, batches[1]),
        "dinov2_vitb": Job(lambda: DINOv2(base, prototypes=prototypes), dinov2(size), stored, batches[2]),
        "byol_r18_32": Job(small, named_recipe("byol", 32), 32, batches[3]),
    }


class Run:
    """A job on a device."""

    def __init__(self, job: Job, device: torch.device, *, compiled: bool, mode: str, bf16: bool) -> None:
        self.job, self.device, self.bf16 = job, device, bf16
        self.module = job.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        recipe = OptimizerRecipe("adamw", 1e-4)
        optimizer = recipe.build(self.module.trained_parameters(), self.module.parameter_roles(), fused=True)
        self.step = BareStep(self.module, optimizer)
        if compiled:
            self.module.student.compile(mode=mode)
            if self.module.teacher is not None:
                self.module.teacher.compile(mode=mode)
        shape = (job.batch, 3, job.stored, job.stored)
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.images = self.images.pin_memory() if device.type == "cuda" else self.images
        self.index = torch.arange(job.batch)

    def views(self) -> Views:
        masks = self.job.recipe.draw_masks(self.index, seed=0, epoch=0)
        raw = RawBatch(self.images, self.index, epoch=0, masks=masks).to(self.device)
        made = batched_views(raw, self.job.recipe, seed=0, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        made.crops = [crop.contiguous(memory_format=torch.channels_last) for crop in made.crops]
        return made

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def once(self, timer: Timer) -> Tensor:
        """One step from stored images to the moved teacher, in the order of the base class."""
        with timer("data"):
            views = self.views()
        return self.step_of(views, timer)

    def step_of(self, views: Views, timer: Timer) -> Tensor:
        """The same from views that are made."""
        module, step = self.module, self.step
        with self.autocast():
            with timer("teacher"), torch.no_grad():
                targets = module.targets(views)
            with timer("student"):
                predictions = module.predictions(views)
            with timer("loss"), torch.autocast(self.device.type, enabled=False):
                terms = module.terms(predictions, targets)
                loss = torch.stack(list(terms.values())).sum()
        with timer("backward"):
            loss.backward()
        with timer("optimizer"):
            step.optimizer.step()
            step.optimizer.zero_grad()
        with timer("EMA and state"), torch.no_grad():
            module.observe(predictions, targets)
            if step.ema is not None:
                step.ema.update(step.momentum)
            for state in step.staged:
                state.commit()
        return loss.detach()


def measure(name: str, run: Run, steps: int, peak: float | None) -> list[str]:
    device = run.device
    for _ in range(3 if steps > 2 else 1):
        loss = run.once(Timer(device, False))
    if not torch.isfinite(loss):
        raise SystemExit(f"{name}: the loss is {loss.item()}")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = per_step(lambda: run.once(Timer(device, False)), device, steps)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    timer = Timer(device, True)
    for _ in range(steps):
        run.once(timer)
    whole = sum(timer.seconds.values())
    shares = [f"{timer.seconds[phase] / whole:.0%}" for phase in PHASES]
    used = "–" if peak is None else f"{flops(run) / seconds / (peak * 1e12):.0%}"
    views = run.views()
    watched = callbacks_share(run.job.build, views, device, bf16=run.bf16, steps=steps)
    return [name, str(run.job.batch), f"{seconds * 1e3:.1f}", f"{run.job.batch / seconds:,.0f}", used,
            f"{memory:.1f}", *shares, f"{watched:.0%}", *beside(run, views, seconds, steps)]  # fmt: skip


def beside(run: Run, views: Views, seconds: float, steps: int) -> list[str]:
    """How many times faster than lightly: the step from made views, and end to end, whose ``seconds`` are given."""
    theirs = peer_step(run.job.build(), run.device, bf16=run.bf16)
    if theirs is None:
        return ["–", "–"]

    def ours() -> None:
        run.step_of(views, Timer(run.device, False))

    warm_up(theirs, views)
    step = per_step(lambda: theirs(views), run.device, steps) / per_step(ours, run.device, steps)
    if run.job.stored > 32:
        return [f"{step:.2f}", "–"]
    workers = 0 if run.device.type == "cpu" else (os.cpu_count() or 1)
    made = peer_views(run.images, run.device, workers)
    for _ in range(3 * workers):  # past what the workers had made beforehand
        theirs(next(made))
    return [f"{step:.2f}", f"{per_step(lambda: theirs(next(made)), run.device, steps) / seconds:.2f}"]


def warm_up(step: Step, views: Views) -> None:
    for _ in range(3):
        step(views)


def flops(run: Run) -> int:
    """Of the products of one step, as run without compilation."""
    plain = Run(run.job, run.device, compiled=False, mode="default", bf16=run.bf16)
    with FlopCounterMode(display=False) as counter:
        plain.once(Timer(run.device, False))
    return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=jobs(tiny=True))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--mode", default="default", help="of torch.compile; reduce-overhead uses CUDA graphs")
    parser.add_argument("--peak", type=float, help="bf16 TFLOP/s of the card, for the utilisation: 989 for an H100")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    given = parser.parse_args()
    if not (given.tiny or torch.cuda.is_available()):
        raise SystemExit("no GPU here; --tiny runs small jobs on the CPU")
    device = torch.device("cpu" if given.tiny else "cuda")
    steps = 1 if given.tiny else given.steps
    compiled = not given.tiny if given.compile is None else given.compile
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    chosen = {name: job for name, job in jobs(given.tiny).items() if not given.only or name in given.only}
    rows = []
    for name, job in chosen.items():
        run = Run(job, device, compiled=compiled, mode=given.mode, bf16=not given.tiny)
        rows.append(measure(name, run, steps, given.peak))
        print(*rows[-1], sep=" | ", flush=True)
        del run
        torch.compiler.reset()
    header = ["job", "batch", "ms a step", "images/s", "model FLOPs utilisation", "peak GiB", *PHASES,
              "callbacks, of a Trainer's step", "step, times lightly's eager one", "end to end, likewise"]  # fmt: skip
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, tiny: no figure means anything"
    text = f"{card}, torch {torch.__version__}, compiled: {compiled} ({given.mode})\n\n" + "\n".join(lines) + "\n"
    print(text)
    if given.out is not None:
        with given.out.open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
