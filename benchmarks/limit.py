"""How far from the least time that the mathematics takes: Trainer, callbacks, teacher, start."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from bare import BareStep
from measure import machine
from peers_steps import BOTH, STUDENT, crops
from runs import ROOT, table, write_section
from torch import Tensor, nn

from selfdistill.allocator import keep_freed_memory
from selfdistill.assembly import build_callbacks, build_data, build_method, build_trainer
from selfdistill.config import check
from selfdistill.methods import DINO, SelfDistillModule
from selfdistill.optim import OptimizerRecipe
from selfdistill.teacher import make_teacher
from selfdistill.teacher.ema import EMA
from selfdistill.views import Views

STEPS = 6
Module = SelfDistillModule[Any, Any]


class Clock(L.Callback):
    """Processor seconds of the steps but the first, views not counted."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.start = time.process_time()
        self.seconds = (time.process_time() - self.start) / max(trainer.global_step - 1, 1)


def byol() -> tuple[Module, Views]:
    config = check("train", ["method=byol_like", "data=cifar10", "data.root=.", "backbone=resnet18"]).config
    module = build_method(config)
    module.optimizer_recipe = OptimizerRecipe("sgd", 1e-3)
    return module, Views(crops(32, 32, 32), (BOTH, BOTH))


def dino() -> tuple[Module, Views]:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True)
    module = DINO(vit, prototypes=4096, optimizer=OptimizerRecipe("adamw", 1e-4))
    return module, Views(crops(4, 224, 224, *[96] * 4), (BOTH, BOTH, *[STUDENT] * 4))


def by_trainer(module: Module, views: Views, folder: Path) -> float:
    """Seconds of a step under a Trainer with the default callbacks."""
    clock = Clock()
    config = check("train", ["callbacks.best=null"]).config
    config.run_dir = str(folder)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=STEPS,
        max_epochs=-1, limit_val_batches=0, default_root_dir=folder,
        callbacks=[*build_callbacks(config, folder), clock],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([views] * STEPS, batch_size=None))
    return clock.seconds


def by_loop(module: Module, views: Views) -> float:
    """Seconds of a step in a bare loop, of `torch` alone."""
    recipe = module.optimizer_recipe
    step = BareStep(module, recipe.build(module.trained_parameters(), module.parameter_roles(), fused=True))
    step(views)
    start = time.process_time()
    for _ in range(STEPS - 1):
        step(views)
    return (time.process_time() - start) / (STEPS - 1)


def arithmetic(module: Module, views: Views) -> float:
    """Seconds of 2·T_forward + T_backward: the student's forward and backward, the teacher's forward."""
    module.train()

    def student() -> Tensor:
        projections = module.predictions(views).projections
        return projections.square().mean()

    def both() -> None:
        with torch.no_grad():
            module.targets(views)
        student().backward()

    both()
    start = time.process_time()
    for _ in range(STEPS - 1):
        both()
    seconds = (time.process_time() - start) / (STEPS - 1)
    module.zero_grad()
    return seconds


def steps(build: Callable[[], tuple[Module, Views]], repeats: int) -> tuple[float, float]:
    """Trainer over loop, loop over arithmetic: medians of the ratios, in turn."""
    ratios: list[tuple[float, float]] = []
    for _ in range(repeats):
        module, views = build()
        with tempfile.TemporaryDirectory() as folder:
            trainer = by_trainer(module, views, Path(folder))
        module, views = build()
        loop = by_loop(module, views)
        least = arithmetic(module, views)
        ratios.append((trainer / loop, loop / least))
    first, second = zip(*ratios, strict=True)
    return statistics.median(first), statistics.median(second)


def callbacks_share() -> float:
    """Share of the default run on digits that its callbacks take; the teacher's update is no watcher."""
    from lightning.pytorch.profilers import SimpleProfiler

    config = check("train", ["trainer.enable_progress_bar=false"]).config
    with tempfile.TemporaryDirectory() as folder:
        config.run_dir = folder
        L.seed_everything(0, verbose=False)
        profiler = SimpleProfiler()
        trainer = build_trainer(config, build_callbacks(config, Path(folder)))
        trainer.profiler = profiler
        start = time.monotonic()
        trainer.fit(build_method(config), build_data(config))
        whole = time.monotonic() - start
    hooks = {name: sum(times) for name, times in profiler.recorded_durations.items()}
    watching = sum(t for name, t in hooks.items() if "[Callback]" in name and "TeacherUpdate" not in name)
    return watching / whole


def bandwidth() -> float:
    """Bytes a second of the EMA over those of the plainest pass that reads two arrays and writes one of them."""
    student: nn.Module = timm.create_model("vit_small_patch16_224", num_classes=0)
    ema = EMA(make_teacher(student), student, "own")
    count = sum(p.numel() for p in student.parameters())
    a, b = torch.rand(2, count)
    rates: list[float] = []
    for _ in range(15):
        start = time.process_time()
        for _ in range(5):
            a.add_(b)
        middle = time.process_time()
        for _ in range(5):
            ema.update(0.996)
        rates.append((middle - start) / (time.process_time() - middle))
    return statistics.median(rates)


def seconds(*arguments: str, folder: Path | None = None) -> float:
    """Least of three runs of the command, on the wall."""
    found = []
    for turn in range(3):
        where = [] if folder is None else [f"hydra.run.dir={folder / str(turn)}"]
        start = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "src.train", *arguments, *where], cwd=ROOT, capture_output=True, check=False
        )
        found.append(time.monotonic() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as our commands do
    warnings.filterwarnings("ignore")
    rows: list[list[str]] = []

    def add(name: str, found: float, most: float, unit: str = "", *, least: bool = False) -> None:
        reached = found >= most if least else found <= most
        asked = f"{'≥' if least else '≤'} {most:g}{unit}"
        rows.append([name, f"{found:.2f}{unit}", asked, "yes" if reached else "no"])
        print(*rows[-1], sep=" | ", file=sys.stderr)

    add("EMA, share of the memory's bandwidth", bandwidth(), 0.7, least=True)
    for name, build in (("BYOL, ResNet-18, 32 px, B = 32", byol), ("DINO, ViT-Tiny, 2 + 4 crops, B = 4", dino)):
        trainer, loop = steps(build, given.repeats)
        add(f"{name}: Trainer with default callbacks / bare loop", trainer, 1.05)
        add(f"{name}: bare loop / (2 T_forward + T_backward)", loop, 1.05)
    add("callbacks, share of the default run on digits", callbacks_share(), 0.1)
    add("`--help`", seconds("--help"), 3, " s")
    add("`--cfg job`", seconds("--cfg", "job"), 3, " s")
    add("refusal of an unknown setting", seconds("method.no_such_thing=1"), 3, " s")
    add("refusal of a bad value", seconds("data.batch_size=0"), 3, " s")
    add("refusal of a divergence that a method does not take", seconds("method=swav_like", "divergence=l2"), 3, " s")
    add("refusal by what is built: patch tokens of a CNN", seconds("method=msn_like", "backbone=small_cnn"), 3, " s")
    add("refusal by the data: more images a batch than there are", seconds("data.batch_size=5000"), 3, " s")
    with tempfile.TemporaryDirectory() as folder:
        whole = seconds("trainer.max_steps=1", "trainer.max_epochs=1", folder=Path(folder))
    add("default run of one step, with its evaluations", whole, 20, " s")
    write_section(
        "limit",
        f"### Close to the limit\n\n`python benchmarks/limit.py`: {machine()}; medians of {given.repeats} ratios taken "
        "in turn, of processor seconds; commands on the wall, the least of three.\n\n"
        + table(["what", "found", "asked", "reached"], rows),
    )


if __name__ == "__main__":
    main()
