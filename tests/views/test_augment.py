"""The CPU engine: the same views as the batched one, from any kind of image, and `ViewLoader` around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfdistill.data import EpochIndices
from selfdistill.views import (
    Augment,
    CropSpec,
    RawBatch,
    ViewBatches,
    ViewLoader,
    ViewRecipe,
    batched_views,
    named_recipe,
)
from selfdistill.views.augment import as_tensor, centre

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def pictures(count: int, height: int = 40, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def both_engines(stored: Tensor, recipe: ViewRecipe) -> tuple[list[Tensor], list[Tensor]]:
    settings: dict[str, Any] = {"seed": 4, "mean": MEAN, "std": STD}
    cpu = ViewBatches(list(stored), recipe, **settings)[EpochIndices(list(range(len(stored))), epoch=3)]
    batched = batched_views(RawBatch(stored, torch.arange(len(stored)), epoch=3), recipe, **settings)
    return cpu.crops, batched.crops


WARPED = ViewRecipe(
    [CropSpec(24, Augment(rotate=15, shift=0.1, zoom=(0.8, 1.2), shear=10, jitter=1, contrast=0.4, noise=0.1), count=2)]
)
RECIPES = {name: named_recipe(name, 24) for name in ("byol", "dino", "mocov2", "simsiam")} | {"warped": WARPED}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_engines_agree_on_floats(recipe: ViewRecipe) -> None:
    for cpu, batched in zip(*both_engines(pictures(24), recipe), strict=True):
        # All but single pixels that the last bit tips over the solarizing threshold.
        assert ((cpu - batched).abs() < 2e-4).double().mean() > 0.999


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_engines_agree_on_bytes_but_for_rounding(recipe: ViewRecipe) -> None:
    stored = (pictures(24) * 255).to(torch.uint8)
    for cpu, batched in zip(*both_engines(stored, recipe), strict=True):
        # Rounding tips single pixels over the solarizing threshold, hence the mean.
        assert ((cpu - batched).abs() * 0.25).mean() < 3 / 255


def test_any_kind_of_image() -> None:
    gray = (pictures(1)[0, 0] * 255).to(torch.uint8)
    rgb = gray.expand(3, -1, -1)
    alpha = np.stack([gray.numpy()] * 3 + [np.full_like(gray.numpy(), 255)], axis=2)
    dataset = [
        gray[None],
        rgb,
        Image.fromarray(gray.numpy()),
        Image.fromarray(rgb.permute(1, 2, 0).numpy()),
        Image.fromarray(alpha),
    ]
    recipe = ViewRecipe([CropSpec(16, Augment())])
    crop = ViewBatches(dataset, recipe, seed=0, mean=MEAN, std=STD)[EpochIndices([0, 1, 2, 3, 4], 0)].crops[0]
    assert crop.shape == (5, 3, 16, 16)
    for row in range(1, 5):
        torch.testing.assert_close(crop[row], crop[0], atol=1e-6, rtol=0)


def test_wrong_kinds_of_image() -> None:
    with pytest.raises(TypeError, match="an image is a ndarray; give PIL images or uint8 tensors"):
        as_tensor(np.zeros((4, 4)), 3)
    with pytest.raises(ValueError, match=r"shape \[4, 4\]; give \[3, H, W\]"):
        as_tensor(torch.zeros(4, 4), 3)
    with pytest.raises(ValueError, match=r"shape \[2, 4, 4\]"):
        as_tensor(torch.zeros(2, 4, 4), 3)


@pytest.mark.parametrize("labelled", [True, False])
def test_view_loader(labelled: bool) -> None:
    images = [Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()) for image in pictures(7, 50, 30)]
    dataset = [(image, label) for label, image in enumerate(images)] if labelled else images
    loader = ViewLoader(dataset, views="dino", batch_size=3, size=28)
    batches = list(loader)
    assert len(loader) == len(batches) == 2
    for views in batches:
        assert [tuple(crop.shape) for crop in views.crops] == [(3, 3, 28, 28)] * 2 + [(3, 3, 12, 12)] * 8
        assert len(views.teacher) == 2
        assert len(views.student) == 10
        assert views.index is not None
        if labelled:
            assert views.labels is not None
            assert torch.equal(views.labels, views.index)
        else:
            assert views.labels is None
    assert isinstance(loader, torch.utils.data.DataLoader)


def test_view_loader_is_the_same_in_workers() -> None:
    dataset = list((pictures(8) * 255).to(torch.uint8))
    alone, workers = (ViewLoader(dataset, batch_size=4, size=16, seed=2, num_workers=n) for n in (0, 2))
    for _ in range(2):
        for ours, theirs in zip(alone, workers, strict=True):
            assert torch.equal(ours.index, theirs.index)
            assert all(torch.equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))


def test_view_loader_refuses() -> None:
    dataset = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4
    with pytest.raises(ValueError, match="batch_size=5 is not allowed; the data set has 4 samples"):
        ViewLoader(dataset, batch_size=5)
    with pytest.raises(ValueError, match="views='bylo'"):
        ViewLoader(dataset, views="bylo", batch_size=2)
    with pytest.raises(ValueError, match="needs a DataModule"):
        ViewLoader(dataset, views=ViewRecipe([CropSpec(8, Augment())], engine="batched"), batch_size=2)


def test_centre() -> None:
    image = torch.zeros(3, 80, 160, dtype=torch.uint8)
    image[:, 30:50, 70:90] = 255
    got = centre(image, 70)
    assert got.shape == (3, 70, 70)
    assert got[:, 27:43, 27:43].min() == 255
    assert centre(got, 70) is got
