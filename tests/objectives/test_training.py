"""Every objective of conf/objective trains, with every parameter at work: a new member needs no edit here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from trainers import bare_trainer

from selfdistill.assembly import build_data, build_method
from selfdistill.callbacks import RandomState
from selfdistill.config import CONF
from selfdistill.teacher import TeacherUpdate

OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
SMALL = ("debug=fast", "data.batch_size=8", "method.hidden_dim=16")
MASKED = ["views=ibot", "backbone=small_vit"]
LINEAR = "{_target_:selfdistill.schedules.LinearSchedule,start:0.0,end:1.0}"
KNOBS = {
    "clustering": ["objective.clustering.prototypes=12"],
    "supervised": ["objective.supervised.classes=10"],
    "masked_pixels": MASKED,
    "masked_tokens": MASKED,
}


class Losses(L.Callback):
    """Loss and terms of every step, and the parameters that no gradient reached."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.terms: list[dict[str, float]] = []
        self.missing: set[str] = set()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.missing |= {n for n, p in pl_module.named_parameters() if p.requires_grad and p.grad is None}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.terms.append({name: float(term) for name, term in outputs["terms"].items()})


class Save(L.Callback):
    """After the first batch, last of the callbacks."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stop.ckpt")


def train(config: Any, tmp_path: Path, *callbacks: L.Callback, **settings: Any) -> tuple[Any, Losses]:
    L.seed_everything(0, verbose=False)
    module, datamodule, losses = build_method(config), build_data(config), Losses()
    callbacks = (RandomState(), TeacherUpdate(), losses, *callbacks)
    trainer = bare_trainer(tmp_path, *callbacks, max_epochs=1, limit_train_batches=3, limit_val_batches=0)
    trainer.fit(module, datamodule, **settings)
    return module, losses


@pytest.mark.parametrize("method", ["byol_like", "ema_teacher"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_trains(objective: str, method: str, compose: Any, tmp_path: Path) -> None:
    config = compose(f"method={method}", f"objective={objective}", *KNOBS.get(objective, []), *SMALL)
    module, seen = train(config, tmp_path)
    assert len(seen.losses) == 3
    assert torch.tensor(seen.losses).isfinite().all()
    assert seen.missing == set()
    assert list(module.objectives) == ([] if objective == "none" else [objective])
    assert (len(seen.terms[0]) == 1) is (objective == "none")
    for loss, terms in zip(seen.losses, seen.terms, strict=True):
        assert loss == pytest.approx(sum(terms.values()), rel=1e-5)


def test_several_with_weights_of_their_own(compose: Any, tmp_path: Path) -> None:
    config = compose("objective=[koleo,contrastive]", "objective.koleo.weight=0.1", *SMALL)
    _, seen = train(config, tmp_path)
    for loss, terms in zip(seen.losses, seen.terms, strict=True):
        assert loss == pytest.approx(terms["distill"] + 0.1 * terms["koleo"] + terms["contrastive"], rel=1e-5)


@pytest.mark.parametrize("key", ["objective.weight", "objective.koleo.weight"])
def test_a_weight_may_be_a_schedule(key: str, compose: Any, tmp_path: Path) -> None:
    _, seen = train(compose("objective=koleo", f"{key}={LINEAR}", *SMALL), tmp_path)
    for step, (loss, terms) in enumerate(zip(seen.losses, seen.terms, strict=True)):
        assert loss == pytest.approx(terms["distill"] + step / 3 * terms["koleo"], rel=1e-5)


def test_one_weight_for_all(compose: Any, tmp_path: Path) -> None:
    _, seen = train(compose("objective=variance_covariance", "objective.weight=0.5", *SMALL), tmp_path)
    terms = seen.terms[0]
    expected = terms["distill"] + 0.5 * (terms["variance"] + terms["covariance"])
    assert seen.losses[0] == pytest.approx(expected, rel=1e-5)


def test_parameters_of_objectives_resume(compose: Any, tmp_path: Path) -> None:
    config = compose("objective=[clustering,masked_pixels]", *KNOBS["clustering"], *MASKED, *SMALL)
    whole, seen = train(config, tmp_path, Save())
    again, rest = train(config, tmp_path, ckpt_path=tmp_path / "stop.ckpt", weights_only=True)
    assert seen.losses[1:] == rest.losses
    for name, value in whole.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, again.state_dict()[name]), name
