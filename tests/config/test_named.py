"""What a constructor says of an argument is told of the setting that gave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from selfdistill.assembly import build_callbacks, build_data, build_method
from selfdistill.config import UserError, check
from selfdistill.config.named import named
from selfdistill.failures import clear_errors
from selfdistill.preview import preview


def build(config: Any, folder: Path) -> None:
    OmegaConf.resolve(config)
    with clear_errors():
        build_data(config)
        build_method(config)
        build_callbacks(config, folder)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("views.crops.0.size=0", "views.crops.0.size: 0 given, allowed is 1 or more"),
        ("method=dino_like views.crops.1.augment.zoom=[2,1]", "views.crops.1.augment.zoom: [2, 1] given"),
        ("callbacks.online_knn.every_n_epochs=0", "callbacks.online_knn.every_n_epochs: 0 given, allowed is 1 or more"),
        ("callbacks=probe callbacks.online_probe.lr=0", "callbacks.online_probe.lr: 0 given, allowed is above 0"),
        ("callbacks.best.save_top_k=-4", "callbacks.best: Invalid value for save_top_k=-4"),
        ("data=shapes data.source.difficulty=4", "data.source.difficulty: 4 given, allowed is 0 to 1"),
        ("+optimizer.freeze.foo=3", "optimizer.freeze: role 'foo' given, this module has predictor"),
        ("optimizer.constant_lr=[foo]", "optimizer.constant_lr: role 'foo' given"),
        ("objective=clustering objective.clustering.epsilon=0", "objective.clustering.epsilon must be"),
        ("method=msn_like backbone=small_vit views.masks.ratio=2", "views.masks.ratio: "),
    ],
)
def test_by_the_setting(overrides: str, says: str, tmp_path: Path, compose: Any) -> None:
    with pytest.raises(UserError) as caught:
        build(compose(*overrides.split(" ")), tmp_path)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("train", "evaluation.shots=[1,0]", "evaluation.shots: 0 given, allowed in it is a whole number of at least 1"),
        ("train", "evaluation.draws=0", "evaluation.draws: 0 given"),
        ("evaluate", "checkpoint=x; protocol.few_shot.draws=0", "protocol.few_shot.draws: 0 given, allowed is a whole"),
        ("evaluate", "checkpoint=x; protocol.few_shot.shots=[0]", "protocol.few_shot.shots: 0 given, allowed in it is"),
        ("evaluate", "checkpoint=x; protocol.finetune.fractions=[2]", "protocol.finetune.fractions: 2 given"),
        ("preview", "images=0", "images: 0 given, allowed is a whole number of at least 1"),
        ("train", "optimizer.warmup=banana", "optimizer.warmup: 'banana' given, allowed is an int of steps ≥ 0"),
        ("train", "schedule.duration=-1", "schedule.duration: -1 given, allowed is an int of steps ≥ 0"),
        ("train", "+optimizer.freeze.predictor=x", "optimizer.freeze: {'predictor': 'x'} given, allowed is a mapping"),
        ("train", "teacher=snapshot; teacher.every=0", "teacher.every: 0 given, allowed is an int of steps ≥ 1"),
        ("train", "teacher=snapshot; teacher.every=0 epochs", "teacher.every: '0 epochs' given"),
        (
            "train",
            "trainer.limit_train_batches=0",
            "trainer.limit_train_batches: 0 given, allowed is a share above 0.0",
        ),
        ("train", "trainer.limit_val_batches=1.5", "trainer.limit_val_batches: 1.5 given, allowed is a share from 0"),
        ("train", "data.labelled=0", "data.labelled: 0 given, allowed is a share above 0.0 and up to 1.0, or a whole"),
        (
            "train",
            "method=multi_head; method.heads=[{_target_:selfdistill.methods.multi_head.Head,out_dim:-3}]",
            "method.heads.0.out_dim: -3 given, allowed is a whole number of at least 1",
        ),
        ("train", "views.crops.9.size=8", "views.crops.9.size=8: no such place in the list"),
    ],
)
def test_when_it_is_composed(name: str, overrides: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        check(name, overrides.split("; "))
    assert str(caught.value).startswith(says)


def test_right_lengths_and_shares_pass() -> None:
    check("train", ["teacher=snapshot", "teacher.every=1 epochs", "optimizer.warmup=0.1"])
    check("train", ["schedule.duration=100", "+optimizer.freeze.predictor=3 epochs"])
    check("train", ["trainer.limit_train_batches=1.0", "trainer.limit_val_batches=0", "data.labelled=1"])


def test_more_images_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images: 5000 given, the training set has 1204 images"):
        preview(check("preview", ["images=5000", f"output={tmp_path / 'x.png'}"]).config)


def test_what_begins_otherwise_passes() -> None:
    node = {"shots": 3, "teacher": 1}
    for said in ("nothing: 5 given", "no argument at all", "evaluation.shots: said already"):
        with pytest.raises(ValueError, match=said), named("evaluation", node):
            raise ValueError(said)
    for said in ("shots: 3 given", "FewShot.shots=3", "shots must be less"):
        with pytest.raises(UserError, match=r"^evaluation\.shots"), named("evaluation", node):
            raise ValueError(said)
