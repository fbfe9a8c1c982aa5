"""The distribution of the views that each engine makes, measured on the views themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.data import EpochIndices
from selfdistill.views import Augment, CropSpec, RawBatch, ViewBatches, ViewRecipe, batched_views

COUNT, SIDE, VIEW = 600, 64, 16
NORMAL: dict[str, Any] = {"seed": 4, "mean": (0.0,) * 3, "std": (1.0,) * 3}


def cpu(stored: Tensor, augment: Augment) -> Tensor:
    recipe = ViewRecipe([CropSpec(VIEW, augment)])
    return ViewBatches(list(stored), recipe, **NORMAL)[EpochIndices(list(range(COUNT)), epoch=0)].crops[0]


def batched(stored: Tensor, augment: Augment) -> Tensor:
    recipe = ViewRecipe([CropSpec(VIEW, augment)])
    return batched_views(RawBatch(stored, torch.arange(COUNT), epoch=0), recipe, **NORMAL).crops[0]


def measured_crops(views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area share, width / height and flip of crops of `ramps`, from the slopes in their middle."""
    across = (views[:, 0, :, 11] - views[:, 0, :, 4]).mean(1) / 7 * VIEW * SIDE
    down = (views[:, 1, 11] - views[:, 1, 4]).mean(1) / 7 * VIEW * SIDE
    return across.abs() * down / SIDE**2, across.abs() / down, across < 0


@pytest.mark.parametrize("stored", ["bytes", "floats"])
def test_crops_and_flips(stored: str) -> None:
    axis = torch.arange(SIDE) / SIDE
    ramps = torch.stack([axis.expand(SIDE, SIDE), axis[:, None].expand(SIDE, SIDE), torch.zeros(SIDE, SIDE)])
    images = ramps.expand(COUNT, -1, -1, -1)
    images = (images * 256).to(torch.uint8) if stored == "bytes" else images
    augment = Augment(crop_scale=(0.2, 1.0), flip=0.5)
    mine, theirs = measured_crops(cpu(images, augment)), measured_crops(batched(images, augment))
    for ours, others, tolerance in zip(mine[:2], theirs[:2], (0.02, 0.05), strict=True):
        assert (ours - others).abs().mean() < tolerance
    for area, ratio, flip in (mine, theirs):
        assert area.min() > 0.17
        assert area.max() < 1.06
        assert ratio.min() > 0.67
        assert ratio.max() < 1.5
        assert area.mean() == pytest.approx(0.57, abs=0.05)
        assert flip.double().mean() == pytest.approx(0.5, abs=0.08)
    assert torch.equal(mine[2], theirs[2])


@pytest.mark.parametrize(
    ("augment", "rate"),
    [
        (Augment(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1), 0.8),
        (Augment(grayscale=0.2), 0.2),
        (Augment(blur=0.5, blur_sigma=(1.0, 2.0)), 0.5),
        (Augment(solarize=0.2), 0.2),
    ],
    ids=["jitter", "grayscale", "blur", "solarize"],
)
def test_rates_of_what_changes_values(augment: Augment, rate: float) -> None:
    image = torch.rand(3, VIEW, VIEW, generator=torch.Generator().manual_seed(0))
    images = image.expand(COUNT, -1, -1, -1)
    changed = [(make(images, augment) - image).abs().mean((1, 2, 3)) > 1e-3 for make in (cpu, batched)]
    assert torch.equal(*changed)
    assert changed[0].double().mean() == pytest.approx(rate, abs=0.08)
