"""Recipes: the published values, the same in Python and in conf/, and refusals that name the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from selfdistill.views import Augment, CropSpec, ViewRecipe, named_recipe
from selfdistill.views.recipes import RECIPES, dino

CONF = Path(__file__).parents[2] / "conf"
FACTS = {"image": {"size": 224, "local_size": 96}}

# name: count, size, area range, jitter (brightness, contrast, saturation, hue), blur, solarize, roles; of the authors'
# repositories. Common to all: flip 1/2, jitter in 4 of 5, grayscale in 1 of 5, blur of 0.1 to 2 pixels.
STRONG, SOFT = (0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.2, 0.1)
BOTH, STUDENT, TEACHER = {"student", "teacher"}, {"student"}, {"teacher"}
PUBLISHED: dict[str, list[tuple[Any, ...]]] = {
    "byol": [(1, 224, (0.08, 1), SOFT, 1.0, 0.0, BOTH), (1, 224, (0.08, 1), SOFT, 0.1, 0.2, BOTH)],
    "mocov2": [(1, 224, (0.2, 1), STRONG, 0.5, 0.0, STUDENT), (1, 224, (0.2, 1), STRONG, 0.5, 0.0, TEACHER)],
    "simsiam": [(2, 224, (0.2, 1), STRONG, 0.5, 0.0, BOTH)],
    "dino": [
        (1, 224, (0.4, 1), SOFT, 1.0, 0.0, BOTH),
        (1, 224, (0.4, 1), SOFT, 0.1, 0.2, BOTH),
        (8, 96, (0.05, 0.4), SOFT, 0.5, 0.0, STUDENT),
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    rows = []
    for spec in named_recipe(name, 224).crops:
        a = spec.augment
        assert (a.flip, a.jitter, a.grayscale, a.blur_sigma, a.crop_ratio) == (
            0.5,
            0.8,
            0.2,
            (0.1, 2.0),
            (3 / 4, 4 / 3),
        )
        assert not a.warps
        jitter = (a.brightness, a.contrast, a.saturation, a.hue)
        rows.append((spec.count, spec.size, a.crop_scale, jitter, a.blur, a.solarize, set(spec.roles)))
    assert rows == PUBLISHED[name]


@pytest.mark.parametrize("path", sorted(CONF.glob("**/views/*.yaml")), ids=lambda path: path.stem)
def test_configs(path: Path) -> None:
    config = OmegaConf.create({"data": FACTS, "views": OmegaConf.load(path)})
    for spec in config.views.crops:
        assert set(spec.augment) == {"_target_", *Augment.__dataclass_fields__}, "every knob is stated"
    recipe = instantiate(config.views)
    assert isinstance(recipe, ViewRecipe)
    assert all(isinstance(spec, CropSpec) and isinstance(spec.augment, Augment) for spec in recipe.crops)
    if path.stem in RECIPES:
        assert recipe.crops == named_recipe(path.stem, 224).crops


def test_recipe_survives_instantiation_as_an_argument() -> None:
    """Hydra turns dataclass arguments into configs; a recipe has to arrive as it is."""
    recipe = named_recipe("byol", 32)
    assert instantiate({"_target_": "builtins.dict"}, recipe=recipe)["recipe"] is recipe


def test_local_views_in_proportion() -> None:
    assert [spec.size for spec in dino(224).flat] == [224] * 2 + [96] * 8
    assert [spec.size for spec in dino(32, local_count=2).flat] == [32, 32, 14, 14]
    assert [spec.size for spec in dino(32, local_size=16).flat[2:]] == [16] * 8
    assert len(dino(224, local_count=0).flat) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"flip": 1.5}, "flip=1.5"),
        ({"hue": 0.6}, "hue=0.6"),
        ({"brightness": -0.1}, "brightness=-0.1"),
        ({"noise": -1}, "noise=-1"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale=\[0.5, 0.2\]"),
        ({"crop_scale": (0.5, 1.2)}, r"crop_scale=\[0.5, 1.2\]"),
        ({"zoom": (0.0, 1.0)}, "zoom="),
        ({"blur_sigma": (0.1,)}, "blur_sigma="),
        ({"interpolation": "nearest"}, "interpolation='nearest'.*bilinear, bicubic"),
    ],
)
def test_bad_augment(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Augment(**settings)


def test_bad_specs() -> None:
    with pytest.raises(ValueError, match=r"roles=\['tutor'\].*teacher, student"):
        CropSpec(8, Augment(), roles=["tutor"])
    with pytest.raises(ValueError, match="roles="):
        CropSpec(8, Augment(), roles=[])
    with pytest.raises(ValueError, match="count=0"):
        CropSpec(8, Augment(), count=0)
    with pytest.raises(ValueError, match="no view has the role student"):
        ViewRecipe([CropSpec(8, Augment(), roles=["teacher"])])
    with pytest.raises(ValueError, match="crops is empty"):
        ViewRecipe([])
    with pytest.raises(ValueError, match="engine='gpu'.*auto, batched, cpu"):
        ViewRecipe([CropSpec(8, Augment())], engine="gpu")
    with pytest.raises(ValueError, match="views='nope'.*byol, dino, mocov2, simsiam"):
        named_recipe("nope", 32)
    with pytest.raises(ValueError, match="1 channel"):
        named_recipe("byol", 32).check_channels(1)
