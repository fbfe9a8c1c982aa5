"""Bytes that a rank sends in each optimizer step of a sharded fit; run as a script this file is one rank."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fits
import lightning as L
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfdistill.assembly import build_method, set_execution
from selfdistill.costs import fsdp2, step_cost, units_of
from selfdistill.distributed import rank, world_size
from selfdistill.sharded_strategy import ShardedStrategy
from selfdistill.teacher import TeacherUpdate
from selfdistill.views import Views

VIT = ("backbone=small_vit",)
CASES: dict[str, fits.Case] = {
    "byol_like": fits.Case(("method=byol_like", *VIT)),
    "byol_like_accumulated": fits.Case(("method=byol_like", *VIT), accumulate=2),
    "byol_like_exact": fits.Case(("method=byol_like", *VIT), exact=4),
    "byol_like_recomputed": fits.Case(("method=byol_like", *VIT, "trainer.activation_checkpointing=true")),
    "dino_like": fits.Case(("method=dino_like", *VIT)),
    "dino_like_exact": fits.Case(("method=dino_like", *VIT), exact=4),
    "msn_like": fits.Case(("method=msn_like",)),
    "swav_like": fits.Case(("method=swav_like", "backbone=resnet18")),
    "ijepa_like": fits.Case(("method=ijepa_like",)),
    "ibot_like_masked_tokens": fits.Case(("method=ibot_like", "objective=masked_tokens")),
    "ema_teacher_without": fits.Case(("method=ema_teacher", "teacher=none", *VIT)),
}
LARGE = 4096
"""Bytes: shards of networks are larger; centers, counts and norms, which the costs leave out, are smaller."""


class Traffic(TorchDispatchMode):
    """Bytes sent, as a ring sends them."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("c10d."):
            size = max((t.numel() * t.element_size() for t in tree_leaves(args) if isinstance(t, Tensor)), default=0)
            passes = 2 if "allreduce" in name else 1
            if size > LARGE:
                self.sent += passes * size * (world_size() - 1) / world_size()
        return func(*args, **(kwargs or {}))


class Count(L.Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Views, batch_idx: int) -> None:
        self.traffic = Traffic()
        self.traffic.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.traffic.__exit__(None, None, None)
        self.steps.append(self.traffic.sent)


def main(folder: Path, devices: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    fits.CASES.update(CASES)
    batches = {name: fits.global_batches(name) for name in names}
    for name, whole in batches.items():
        case, size = CASES[name], fits.SIZES[0] // devices // CASES[name].accumulate
        config = fits.compose(case)
        with torch.device("meta"):
            planned = build_method(config)
        planned.micro_batch_size = case.exact
        views = fits.share(whole[0], 0, devices * case.accumulate)
        cost = step_cost(planned, meta(views))
        module = build_method(config)
        set_execution(config, module)
        module.micro_batch_size = case.exact
        count = Count()
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy=ShardedStrategy(), max_steps=2, logger=False,
            accumulate_grad_batches=case.accumulate, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
            callbacks=[TeacherUpdate(), count],
        )  # fmt: skip
        for each in whole:
            each.crops = [crop.float() for crop in each.crops]
        trainer.fit(module, fits.Loaded(whole, case.accumulate))
        predicted = fsdp2(cost, devices, units_of(planned), micro_batches=case.accumulate).sent
        measured = [sum(count.steps[i : i + case.accumulate]) for i in range(0, len(count.steps), case.accumulate)]
        assert cost.batch == size
        if rank() == 0:
            torch.save({"predicted": predicted, "measured": measured}, folder / f"{name}.pt")


def meta(views: Views) -> Views:
    masks = {name: mask.to("meta") for name, mask in views.masks.items()}
    assert views.index is not None
    labels = None if views.labels is None else views.labels.to("meta")
    return Views([c.float().to("meta") for c in views.crops], views.roles, masks, labels, views.index.to("meta"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
