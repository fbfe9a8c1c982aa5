"""N micro-batches are one large batch: plainly where every term is a mean over images, with accumulate=exact always.

Two steps: one of three micro-batches, then the end of the epoch, of one and a smaller one. In double precision, on
networks without batch statistics, for every conf/method/*.yaml and conf/objective/*.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from selfdistill.assembly import build_data, build_method
from selfdistill.config import CONF
from selfdistill.methods import SelfDistillModule
from selfdistill.methods.coupling import couplings
from selfdistill.teacher import TeacherUpdate
from selfdistill.views import Views
from selfdistill.views.micro_batches import micro_batches

Module = SelfDistillModule[Any, Any]

METHODS = [(path.stem,) for path in sorted((CONF / "method").glob("*.yaml"))]
OBJECTIVES = [
    ("ema_teacher", f"objective={path.stem}", "backbone=small_vit", "views=ibot", "objective.weight=1.5")
    for path in sorted((CONF / "objective").glob("*.yaml"))
    if path.stem != "none"
]
VARIANTS = [
    ("dino_like", "method.centering=sinkhorn"),
    ("dino_like", "method.logits=chunks"),
    ("dinov2_like", "method.centering=sinkhorn"),
    ("swav_like", "method.queue_length=12", "method.queue_start=0"),
    ("simsiam_like", "teacher=ema", "teacher.momentum=0.9"),
    ("mocov3_like", "teacher=none"),
]
CASES = METHODS + OBJECTIVES + VARIANTS
IMAGES, MICRO, COUNT = 18, 4, 3
"""A step of COUNT·MICRO images and one of the 6 that remain."""


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
            self.seen.rates.append([group[value] for group in optimizer.param_groups for value in ("lr", "weight_decay")])
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


def fresh(config: DictConfig) -> Module:
    L.seed_everything(0, verbose=False)
    module = build_method(config)
    without_batch_statistics(module)
    if module.teacher is not None:
        # otherwise some first losses are at their minimum, and say nothing
        generator = torch.Generator().manual_seed(1)
        for parameter in module.teacher.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return module


def trained(module: Module, batches: list[Views], tmp_path: Path, accumulate: int = 1) -> Steps:
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        precision="64-true",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        callbacks=[TeacherUpdate(), watch],
    )
    trainer.fit(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))  # type: ignore[arg-type]
    return watch.seen


def batches_of(config: DictConfig) -> tuple[list[Views], list[Views]]:
    """The two large batches, and the five micro-batches that they consist of."""
    datamodule = build_data(config)
    raw = next(iter(datamodule.train_dataloader()))
    views = datamodule.on_after_batch_transfer(raw, 0)
    large = [part.views for part in micro_batches(views, COUNT * MICRO)]
    return large, [part.views for batch in large for part in micro_batches(batch, MICRO)]


def composed(compose: Any, case: tuple[str, ...]) -> DictConfig:
    method, *settings = case
    given = ["debug=fast", f"data.batch_size={IMAGES}", "backbone.drop_path=0", "optimizer.warmup=0"]
    return compose(f"method={method}", *given, *settings)  # type: ignore[no-any-return]


def assert_equal(found: Steps, wanted: Steps, *, steps: int = 2) -> None:
    assert len(wanted.losses) == len(wanted.gradients) == 2
    for k in range(steps):
        assert found.losses[k] == pytest.approx(wanted.losses[k], rel=1e-6)
        assert found.momenta[k] == wanted.momenta[k]
        assert found.rates[k] == pytest.approx(wanted.rates[k])
        assert found.steps[k] == wanted.steps[k] == k
        for name, gradient in wanted.gradients[k].items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found.gradients[k][name], gradient, rtol=1e-5, atol=1e-6 * scale + 1e-12)
        assert_states_equal(found.states[k], wanted.states[k])


def assert_states_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_micro_batches_are_one_large_batch(case: tuple[str, ...], compose: Any, tmp_path: Path) -> None:
    config = composed(compose, case)
    large, small = batches_of(config)
    assert [batch.batch_size for batch in small] == [4, 4, 4, 4, 2]
    whole = trained(fresh(config), large, tmp_path)
    assert all(float(g.abs().max()) > 0 for n, g in whole.gradients[0].items() if n.endswith("patch_embed.proj.weight"))

    module = fresh(config)
    module.micro_batch_size = MICRO
    exact = trained(module, large, tmp_path)
    assert_equal(exact, whole)
    for found, wanted in zip(exact.codes, whole.codes, strict=True):
        assert (found is None) is (wanted is None)
        if found is not None and wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)

    module = fresh(config)
    plain = trained(module, small, tmp_path, accumulate=COUNT)
    counts = {len(batch.masks["masked"]) / batch.batch_size for batch in small if "masked" in batch.masks}
    equal: Any = ["numbers of masked patches"] if len(counts) < 2 else []
    if couplings(module, [*equal, "numbers of labelled images"]):
        with pytest.raises(AssertionError):
            assert_equal(plain, whole, steps=1)
    else:
        assert_equal(plain, whole)
    # what targets come from is never approximated: center, queue
    networks = ("student.", "teacher.", "predictor.", "prototypes.", "objectives.", "regressor.", "mask_token")
    kept = [name for name in whole.states[0] if not name.startswith(networks)]
    assert_states_equal({n: plain.states[0][n] for n in kept}, {n: whole.states[0][n] for n in kept})
