"""What a method does by itself in Python is what its file in conf/method says, over all of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from selfdistill.config import CONF
from selfdistill.schedules import as_schedule

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
PARTS = {"backbone", "divergence", "teacher", "optimizer", "weights", "objectives"}

pytestmark = pytest.mark.parametrize("method", METHODS)


def composed(method: str, compose: Any) -> Any:
    """With the paper's values: there is no scale for this data set."""
    return compose(f"method={method}", "data=imagenette", "data.root=tests")


def as_written(value: Any) -> Any:
    """Numbers as the schedules that they stand for."""
    return as_schedule(value) if isinstance(value, float) else value


def public(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def test_every_knob_is_stated_at_its_default(method: str, compose: Any) -> None:
    config = composed(method, compose).method
    signature = inspect.signature(get_class(config._target_)).parameters
    stated = {name: config[name] for name in config if not name.startswith("_") and name != "paper"}
    knobs = {name: parameter.default for name, parameter in signature.items() if name not in PARTS}
    assert stated.keys() == knobs.keys()
    for name, value in stated.items():
        if OmegaConf.is_interpolation(config, name):
            continue
        given = instantiate(value) if hasattr(value, "_target_") else value
        assert as_written(given) == as_written(knobs[name]), name


def test_teacher_optimizer_and_weights_are_the_same(method: str, compose: Any) -> None:
    config = composed(method, compose)
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=6, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    module = get_class(config.method._target_)(vit)
    assert module.teacher_policy == instantiate(config.teacher)
    assert vars(module.optimizer_recipe) == vars(instantiate(config.optimizer))
    given = {name: as_schedule(value) for name, value in config.weights.items()}
    # what is not named weighs 1
    assert {name: module.weights.get(name, as_schedule(1.0)) for name in given} == given
    own = getattr(module, "divergence", None)
    if own is not None:
        stated = instantiate(config.divergence)
        assert type(own) is type(stated)
        assert public(own) == public(stated)
