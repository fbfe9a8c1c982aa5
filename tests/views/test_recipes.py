"""Recipes: the published values, the same in Python and in conf/, and refusals that name the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from selfdistill.views import Augment, CropSpec, ViewRecipe, named_recipe
from selfdistill.views.recipes import RECIPES, dino

CONF = Path(__file__).parents[2] / "conf"
FACTS = {"image": {"size": 224, "local_size": 96, "patch": 16}}

# name: count, size, area range, jitter (brightness, contrast, saturation, hue), blur, solarize, roles; of the authors'
# repositories. Common to all: flip 1/2, jitter in 4 of 5, grayscale in 1 of 5, blur of 0.1 to 2 pixels.
STRONG, SOFT = (0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.2, 0.1)
BOTH, STUDENT, TEACHER = {"student", "teacher"}, {"student"}, {"teacher"}
PUBLISHED: dict[str, list[tuple[Any, ...]]] = {
    "byol": [(1, 224, (0.08, 1), SOFT, 1.0, 0.0, BOTH), (1, 224, (0.08, 1), SOFT, 0.1, 0.2, BOTH)],
    "mocov2": [(1, 224, (0.2, 1), STRONG, 0.5, 0.0, STUDENT), (1, 224, (0.2, 1), STRONG, 0.5, 0.0, TEACHER)],
    "mocov3": [(1, 224, (0.2, 1), SOFT, 1.0, 0.0, BOTH), (1, 224, (0.2, 1), SOFT, 0.1, 0.2, BOTH)],
    "simsiam": [(2, 224, (0.2, 1), STRONG, 0.5, 0.0, BOTH)],
    "swav": [
        (2, 224, (0.14, 1), (0.8, 0.8, 0.8, 0.2), 0.5, 0.0, BOTH),
        (6, 96, (0.05, 0.14), (0.8, 0.8, 0.8, 0.2), 0.5, 0.0, STUDENT),
    ],
    "msn": [
        (1, 224, (0.3, 1), STRONG, 0.5, 0.0, TEACHER),
        (1, 224, (0.3, 1), STRONG, 0.5, 0.0, STUDENT),
        (10, 96, (0.05, 0.3), STRONG, 0.5, 0.0, STUDENT),
    ],
    "dino": [
        (1, 224, (0.4, 1), SOFT, 1.0, 0.0, BOTH),
        (1, 224, (0.4, 1), SOFT, 0.1, 0.2, BOTH),
        (8, 96, (0.05, 0.4), SOFT, 0.5, 0.0, STUDENT),
    ],
    "ibot": [
        (1, 224, (0.25, 1), SOFT, 1.0, 0.0, BOTH),
        (1, 224, (0.25, 1), SOFT, 0.1, 0.2, BOTH),
        (10, 96, (0.05, 0.25), SOFT, 0.5, 0.0, STUDENT),
    ],
    "dinov2": [
        (1, 224, (0.32, 1), SOFT, 1.0, 0.0, BOTH),
        (1, 224, (0.32, 1), SOFT, 0.1, 0.2, BOTH),
        (8, 96, (0.05, 0.32), SOFT, 0.5, 0.0, STUDENT),
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


def test_ressl_teaches_with_a_weak_view() -> None:
    student, teacher = named_recipe("ressl", 224).crops
    assert student == named_recipe("mocov2", 224).crops[0]
    assert teacher == CropSpec(224, Augment(crop_scale=(0.2, 1), flip=0.5), roles=["teacher"])


def test_ijepa_only_crops() -> None:
    assert named_recipe("ijepa", 224).crops == (CropSpec(224, Augment(crop_scale=(0.3, 1))),)


def test_published_masks() -> None:
    index = torch.arange(40)
    masks = {name: named_recipe(name, 224).draw_masks(index, seed=0, epoch=0) for name in RECIPES}
    assert {name for name, drawn in masks.items() if drawn} >= {"data2vec", "dinov2", "ibot", "ijepa"}
    assert (masks["data2vec"]["mask"].sum(-1) == 120).all()
    ratio = masks["dinov2"]["mask"].float().mean(-1)
    assert ratio.shape == (2, 40), "a mask of its own for each global crop, none for local ones"
    assert (ratio > 0).sum() == 40
    assert 0.1 <= ratio[ratio > 0].min() < ratio.max() <= 0.5
    assert 0 < (masks["ibot"]["mask"].any(-1)).sum() < 80
    assert masks["ijepa"]["targets"].shape[:2] == (40, 4)
    assert masks["ijepa"]["context"].shape[1] >= 10


@pytest.mark.parametrize("path", sorted(CONF.glob("**/views/*.yaml")), ids=lambda path: path.stem)
def test_configs(path: Path) -> None:
    of_the_data = path.parents[1] / f"{path.stem.partition('_')[0]}.yaml"
    scale = OmegaConf.load(of_the_data).scale if of_the_data.exists() else {}
    config = OmegaConf.create({"data": FACTS, "views": OmegaConf.load(path), "scale": scale})
    for spec in config.views.crops:
        assert set(spec.augment) == {"_target_", *Augment.__dataclass_fields__}, "every knob is stated"
    recipe = instantiate(config.views)
    assert isinstance(recipe, ViewRecipe)
    assert all(isinstance(spec, CropSpec) and isinstance(spec.augment, Augment) for spec in recipe.crops)
    if path.stem in RECIPES:
        named = named_recipe(path.stem, 224)
        assert (recipe.crops, recipe.masks) == (named.crops, named.masks)


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
        ({"flip": 1.5}, "flip: 1.5 given"),
        ({"hue": 0.6}, "hue: 0.6"),
        ({"brightness": -0.1}, "brightness: -0.1"),
        ({"noise": -1}, "noise: -1"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale: \[0.5, 0.2\]"),
        ({"crop_scale": (0.5, 1.2)}, r"crop_scale: \[0.5, 1.2\]"),
        ({"zoom": (0.0, 1.0)}, "zoom: "),
        ({"blur_sigma": (0.1,)}, "blur_sigma: "),
        ({"interpolation": "nearest"}, "interpolation: 'nearest'.*bilinear or bicubic"),
    ],
)
def test_bad_augment(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Augment(**settings)


def test_bad_specs() -> None:
    with pytest.raises(ValueError, match=r"roles: \['tutor'\].*teacher, student"):
        CropSpec(8, Augment(), roles=["tutor"])
    with pytest.raises(ValueError, match="roles: "):
        CropSpec(8, Augment(), roles=[])
    with pytest.raises(ValueError, match="count: 0"):
        CropSpec(8, Augment(), count=0)
    with pytest.raises(ValueError, match="no view has the role student"):
        ViewRecipe([CropSpec(8, Augment(), roles=["teacher"])])
    with pytest.raises(ValueError, match="crops is empty"):
        ViewRecipe([])
    with pytest.raises(ValueError, match="engine='gpu'.*auto, batched, cpu"):
        ViewRecipe([CropSpec(8, Augment())], engine="gpu")
    with pytest.raises(ValueError, match="views='nope'.*byol, .*simsiam"):
        named_recipe("nope", 32)
    with pytest.raises(ValueError, match="1 channel"):
        named_recipe("byol", 32).check_channels(1)


def test_supervised_views_are_crops_and_flips() -> None:
    (spec,) = named_recipe("supervised", 224).crops
    assert spec == CropSpec(224, Augment(crop_scale=(0.08, 1.0), flip=0.5), count=2)
