"""The mission's comparisons: self-distillation against contrast and against clusters, each claim measured.

python benchmarks/comparisons.py             # finished runs are not run again
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from runs import cell, run_all, table, write_section
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from selfdistill.assembly import build_data, build_method
from selfdistill.config import check

METHODS = {
    "BYOL": ["method=byol_like"],
    "EMA teacher": ["method=ema_teacher"],
    "DINO": ["method=dino_like"],
    "MoCo v2": ["method=moco_like"],
    "SimCLR-like": ["method=mocov3_like", "teacher=none"],
    "SwAV": ["method=swav_like"],
}
SHORT = ["trainer.max_epochs=30"]
STEPS = ["trainer.max_epochs=-1", "trainer.max_steps=270"]
BATCHES = (256, 128, 64, 32)
SETTINGS = {
    "BYOL": {"teacher.momentum": (0.9, 0.975), "optimizer.lr": (1e-3, 4e-3), "method.out_dim": (64, 256),
             "method.hidden_dim": (256, 1024), "optimizer.lr_multipliers.predictor": (2.5, 10.0)},
    "SwAV": {"method.temperature": (0.05, 0.2), "optimizer.lr": (1e-3, 4e-3), "method.out_dim": (32, 128),
             "method.hidden_dim": (256, 1024), "method.prototypes": (50, 200), "method.epsilon": (0.025, 0.1),
             "method.sinkhorn_iterations": (1, 6)},
}  # fmt: skip
"""Every number of a method, halved and doubled (1 − momentum for the momentum; 1 and 6 iterations for 3)."""


def build(overrides: Sequence[str]) -> tuple[Any, Any]:
    config = check("train", overrides).config
    OmegaConf.resolve(config)
    L.seed_everything(0, verbose=False)
    return build_method(config), build_data(config)


class Watch(L.Callback):
    """Seconds of each step, the gradient's norm in it, and the bytes that its graph keeps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.norms: list[float] = []
        self.kept = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._start = time.perf_counter()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        norms = [p.grad.norm() for _, p in pl_module.trained_parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(norms).norm()))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def watched(overrides: Sequence[str], epochs: int) -> tuple[Watch, Any]:
    module, data = build([*overrides, "data.batch_size=128"])
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=epochs, limit_val_batches=0, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, data)
    return watch, module


def kept_bytes(overrides: Sequence[str]) -> int:
    """Bytes of distinct tensors that the graph of one step keeps for its backward pass, parameters apart."""
    module, data = build([*overrides, "data.batch_size=128"])
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    class One(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
            self.hooks.__enter__()

        def on_before_backward(self, *_: Any) -> None:
            self.hooks.__exit__()

    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=1, max_epochs=-1, limit_val_batches=0, callbacks=[One()],
    )  # fmt: skip
    trainer.fit(module, data)
    return sum(seen.values())


def costs() -> str:
    """Time, memory and gradient noise of a step, the methods in turn."""
    rows = []
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    noise: dict[str, list[float]] = {name: [] for name in METHODS}
    state: dict[str, int] = {}
    for _ in range(3):
        for name, overrides in METHODS.items():
            watch, module = watched(overrides, epochs=5)
            seconds[name].append(statistics.median(watch.seconds[9:]))
            late = watch.norms[9:]
            noise[name].append(statistics.stdev(late) / statistics.mean(late))
            state[name] = sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
    for name, overrides in METHODS.items():
        ratio = statistics.median(seconds[name]) / statistics.median(seconds["BYOL"])
        memory = [f"{state[name] / 2**20:.1f}", f"{kept_bytes(overrides) / 2**20:.1f}"]
        rows.append([name, f"{ratio:.2f}", *memory, f"{statistics.median(noise[name]):.2f}"])
    header = ["method", "time of a step, BYOL's = 1", "networks and buffers, MiB", "kept for backward, MiB",
              "gradient norm, std / mean"]  # fmt: skip
    return table(header, rows)


def batches(parallel: int, threads: int) -> str:
    """1-shot accuracy as the batch shrinks, at the same number of epochs and at the same number of steps."""
    names = ["BYOL", "MoCo v2", "SimCLR-like"]
    rows = []
    for what, length in (("30 epochs", SHORT), ("270 steps", STEPS)):
        jobs = [[*METHODS[name], *length, f"data.batch_size={batch}"] for name in names for batch in BATCHES]
        summaries = run_all(jobs, parallel=parallel, threads=threads, ignore=("callbacks", "logger"))
        values = [_one_shot(summary) for summary in summaries]
        for i, name in enumerate(names):
            own = values[i * len(BATCHES) : (i + 1) * len(BATCHES)]
            rows.append([name, what, *[f"{value:.3f}" for value in own], f"{own[-1] - own[0]:+.3f}"])
    return table(["method", "length", *[f"batch {batch}" for batch in BATCHES], "256 → 32"], rows)


def sensitivity(parallel: int, threads: int) -> str:
    """1-shot accuracy with each setting halved and doubled."""
    rows = []
    for name, settings in SETTINGS.items():
        jobs = [[*METHODS[name], *SHORT]]
        jobs += [[*METHODS[name], *SHORT, f"{key}={value}"] for key, pair in settings.items() for value in pair]
        first, *others = [
            _one_shot(s) for s in run_all(jobs, parallel=parallel, threads=threads, ignore=("callbacks", "logger"))
        ]
        changes = [value - first for value in others]
        for i, (key, pair) in enumerate(settings.items()):
            low, high = changes[2 * i : 2 * i + 2]
            rows.append([name, f"`{key}`", f"{pair[0]:g}: {low:+.3f}", f"{pair[1]:g}: {high:+.3f}"])
        spread = cell([abs(change) for change in changes])
        rows.append([name, f"all {len(settings)} (default {first:.3f})", f"mean of absolute changes {spread}", ""])
    return table(["method", "setting", "halved", "doubled"], rows)


def _one_shot(summary: dict[str, Any]) -> float:
    return float("nan") if "error" in summary else float(summary["figures"]["trained"]["one_shot"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    write_section(
        "comparisons costs",
        "### A step of self-distillation, contrast and clusters\n\n`python benchmarks/comparisons.py`: digits, batch "
        "128, 5 epochs, three times in turn, medians. The noise is that of steps 10 to 45.\n\n" + costs(),
    )
    write_section(
        "comparisons batches",
        "### As the batch shrinks\n\nThe same command: digits, one seed, 1-shot accuracy; the learning rate "
        "(AdamW) is the same.\n\n" + batches(given.parallel, given.threads),
    )
    write_section(
        "comparisons settings",
        "### Sensitivity to settings\n\nThe same command: 30 epochs on digits, one seed, change of the 1-shot "
        "accuracy.\n\n" + sensitivity(given.parallel, given.threads),
    )


if __name__ == "__main__":
    main()
