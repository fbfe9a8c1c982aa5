"""N micro-batches are one large batch: plainly where every term is a mean over images, with accumulate=exact always.

Two steps: one of three micro-batches, then the end of the epoch, of one and a smaller one. In double precision, on
networks without batch statistics, for every conf/method/*.yaml and conf/objective/*.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from stepping import Module, Steps, batch_of, trained, without_batch_statistics
from torch import Tensor

from selfdistill.assembly import build_method
from selfdistill.config import CONF
from selfdistill.methods.coupling import couplings
from selfdistill.views import Views
from selfdistill.views.micro_batches import micro_batches

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
CASES: list[Any] = [
    *METHODS,
    *(pytest.param(case, marks=pytest.mark.slow, id=" ".join(case)) for case in OBJECTIVES + VARIANTS),
]
DOUBLE: dict[str, Any] = {"precision": "64-true"}
IMAGES, MICRO, COUNT = 18, 4, 3
"""A step of COUNT·MICRO images and one of the 6 that remain."""


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


def batches_of(config: DictConfig) -> tuple[list[Views], list[Views]]:
    """The two large batches, and the five micro-batches that they consist of."""
    large = [part.views for part in micro_batches(batch_of(config), COUNT * MICRO)]
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case))
def test_micro_batches_are_one_large_batch(case: tuple[str, ...], compose: Any, tmp_path: Path) -> None:
    config = composed(compose, case)
    large, small = batches_of(config)
    assert [batch.batch_size for batch in small] == [4, 4, 4, 4, 2]
    whole = trained(fresh(config), large, tmp_path, **DOUBLE)
    assert all(float(g.abs().max()) > 0 for n, g in whole.gradients[0].items() if n.endswith("patch_embed.proj.weight"))

    module = fresh(config)
    module.micro_batch_size = MICRO
    exact = trained(module, large, tmp_path, **DOUBLE)
    assert_equal(exact, whole)
    for found, wanted in zip(exact.codes, whole.codes, strict=True):
        assert (found is None) is (wanted is None)
        if found is not None and wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)

    module = fresh(config)
    plain = trained(module, small, tmp_path, accumulate_grad_batches=COUNT, **DOUBLE)
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
