"""What a run computes in each optimizer step, for tests that compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from trainers import bare_trainer

from selfdistill.assembly import build_data
from selfdistill.methods import SelfDistillModule
from selfdistill.teacher import TeacherUpdate
from selfdistill.views import Views

Module = SelfDistillModule[Any, Any]


@dataclass
class Steps:
    """What a run computed in each optimizer step."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    codes: list[Tensor | None] = field(default_factory=list)
    momenta: list[float | None] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


class Watch(L.Callback):
    """Fills `Steps`; a loss is the mean over the images of the step's batches."""

    def __init__(self) -> None:
        self.seen = Steps()
        self._sum = self._images = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def look(optimizer: Any, args: Any, kwargs: Any) -> None:
            found = pl_module.named_parameters()
            self.seen.gradients.append({n: p.grad.clone() for n, p in found if p.grad is not None})
            self.seen.rates.append(
                [group[value] for group in optimizer.param_groups for value in ("lr", "weight_decay")]
            )
            self.seen.steps.append(pl_module.clock.step)  # type: ignore[union-attr,arg-type]

        # after it: Lightning computes gradients within the step
        trainer.optimizers[0].register_step_post_hook(look)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self._sum, self._images = self._sum + loss * batch.batch_size, self._images + batch.batch_size
        if len(self.seen.losses) == len(self.seen.gradients):
            return
        self.seen.losses.append(self._sum / self._images)
        self._sum = self._images = 0.0
        # those of logits in chunks are of single precision
        chunks = getattr(pl_module, "chunks", False)
        answers = None if chunks else pl_module.answers(outputs["student"], outputs["teacher"])
        self.seen.codes.append(None if answers is None else answers.teacher.softmax(-1))
        update = next(c for c in trainer.callbacks if isinstance(c, TeacherUpdate))  # type: ignore[attr-defined]
        self.seen.momenta.append(update.momentum)
        state = pl_module.state_dict()
        self.seen.states.append({n: v.clone() for n, v in state.items() if isinstance(v, Tensor)})


def without_batch_statistics(module: nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, _BatchNorm):
            affine = part.weight is not None
            trained = affine and part.weight.requires_grad
            norm: nn.Module = (
                nn.GroupNorm(1, part.num_features, affine=affine)
                if isinstance(part, nn.BatchNorm2d)
                else nn.LayerNorm(part.num_features, elementwise_affine=affine)
            )
            setattr(module, name, norm.requires_grad_(trained))
        else:
            without_batch_statistics(part)


def trained(
    module: Module, batches: list[Views], tmp_path: Path, callbacks: Sequence[L.Callback] = (), **settings: Any
) -> Steps:
    watch = Watch()
    callbacks = (TeacherUpdate(), watch, *callbacks)
    trainer = bare_trainer(tmp_path, *callbacks, max_epochs=1, log_every_n_steps=1, **settings)
    trainer.fit(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))  # type: ignore[arg-type]
    return watch.seen


def batch_of(config: DictConfig) -> Views:
    """The first training batch."""
    datamodule = build_data(config)
    views: Views = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    return views
