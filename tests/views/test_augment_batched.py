"""The batched engine against torchvision, operation by operation and sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from selfdistill.views import Augment, CropSpec, RawBatch, ViewRecipe, batched_views, colour, named_recipe
from selfdistill.views.augment_batched import as_float, resample
from selfdistill.views.parameters import Parameters, draw

CLOSE = {"atol": 2e-5, "rtol": 0.0}


def images(count: int = 6, channels: int = 3, height: int = 40, width: int = 32) -> Tensor:
    """Smooth colours with some detail, so that every operation has something to change."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.2 * torch.rand(count, channels, height, width, generator=generator)).clamp(0, 1)


def drawn(augment: Augment, batch: Tensor, seed: int = 0) -> Parameters:
    height, width = (torch.full((len(batch),), side) for side in batch.shape[-2:])
    return draw(augment, height, width, torch.arange(len(batch)), seed=seed, epoch=0, crop=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [9, 32, 64])
def test_resized_crops(interpolation: str, size: int) -> None:
    batch = images(40)
    augment = Augment(crop_scale=(0.08, 1.0), interpolation=interpolation, flip=0.5)
    parameters = drawn(augment, batch)
    got = resample(batch, parameters, augment, size)
    for row, image in enumerate(batch):
        box = parameters.box[row].tolist()
        expected = F.resized_crop(image, *box, [size, size], InterpolationMode(interpolation), antialias=True)
        if parameters.flip[row]:
            expected = expected.flip(-1)
        torch.testing.assert_close(got[row], expected.clamp(0, 1), **CLOSE)


def test_whole_images_pass_untouched() -> None:
    batch = images(4, height=16, width=16)
    assert torch.equal(resample(batch, drawn(Augment(), batch), Augment(), 16), batch)
    mirror = Augment(flip=1.0)
    assert torch.equal(resample(batch, drawn(mirror, batch), mirror, 16), batch.flip(-1))


@pytest.mark.parametrize(
    "knobs",
    [
        {"rotate": 40.0},
        {"shift": 0.2},
        {"zoom": (0.6, 1.5)},
        {"shear": 25.0},
        {"rotate": 20.0, "shift": 0.1, "zoom": (0.8, 1.2), "shear": 15.0, "flip": 0.5},
    ],
    ids=lambda knobs: "+".join(knobs),
)
def test_warps(knobs: dict[str, float]) -> None:
    batch = images(12, height=24, width=24)
    augment = Augment(**knobs)  # type: ignore[arg-type]
    parameters = drawn(augment, batch)
    got = resample(batch, parameters, augment, 24)
    for row, image in enumerate(batch):
        expected = F.affine(
            image.flip(-1) if parameters.flip[row] else image,
            angle=parameters.angle[row].item(),
            translate=(24 * parameters.shift[row]).tolist(),
            scale=parameters.zoom[row].item(),
            shear=[parameters.shear[row].item(), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(got[row], expected, **CLOSE)


def test_a_warp_places_the_crop_and_the_size() -> None:
    """With next to no rotation, the folded crop and resize is plain bilinear sampling of the box."""
    batch = images(8, height=24, width=24)
    augment = Augment(crop_scale=(0.2, 0.5), rotate=1e-4)
    parameters = drawn(augment, batch)
    got = resample(batch, parameters, augment, 24)
    top, left, height, width = parameters.box[0].tolist()
    expected = F.resized_crop(batch[0], top, left, height, width, [24, 24], antialias=False)
    # At the box's border the warp sees the neighbours that a cut-out crop has not.
    torch.testing.assert_close(got[0, :, 3:-3, 3:-3], expected[:, 3:-3, 3:-3], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour(name: str, channels: int) -> None:
    batch = images(7, channels)
    strength = torch.linspace(-0.5, 0.5, 7) if name == "hue" else torch.linspace(0, 2, 7)
    got = getattr(colour, name)(batch, strength)
    for row, image in enumerate(batch):
        torch.testing.assert_close(got[row], getattr(F, f"adjust_{name}")(image, strength[row].item()), **CLOSE)


def test_hue_of_grays_and_pure_colours() -> None:
    pixels = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    batch = pixels.T[None, :, :, None].expand(3, -1, -1, -1)
    got = colour.hue(batch, torch.tensor([0.0, 1 / 3, -1 / 3]))
    assert torch.allclose(got[0], batch[0], atol=1e-6)
    assert torch.allclose(got[1, :, 3, 0], torch.tensor([0.0, 1, 0]), atol=1e-6), "red turns green"
    assert torch.allclose(got[2, :, 3, 0], torch.tensor([0.0, 0, 1]), atol=1e-6), "red turns blue"


def test_grayscale_and_solarize() -> None:
    batch = images(3)
    torch.testing.assert_close(colour.grayscale(batch), F.rgb_to_grayscale(batch), **CLOSE)
    assert torch.equal(colour.solarize(batch), F.solarize(batch, 0.5))


@pytest.mark.parametrize("radius", [1, 3, 8])
def test_blur(radius: int) -> None:
    batch = images(5, height=12, width=17)
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0])
    got = colour.gaussian_blur(batch, sigma, radius)
    for row, image in enumerate(batch):
        expected = F.gaussian_blur(image, [2 * radius + 1] * 2, [sigma[row].item()] * 2)
        torch.testing.assert_close(got[row], expected, **CLOSE)


def test_blur_radius_fits_the_image() -> None:
    assert colour.blur_radius(2.0, 224) == 8
    assert colour.blur_radius(2.0, 4) == 3


@pytest.mark.parametrize("name", ["byol", "dino", "digits"])
def test_a_sample_does_not_see_its_batch(name: str) -> None:
    """Same views alone, in another order, beside others: for each crop of each sample."""
    recipe = ViewRecipe([CropSpec(16, Augment(rotate=20, jitter=1, contrast=0.3, noise=0.1), count=2)])
    if name != "digits":
        recipe = named_recipe(name, 16)
    batch = (images(20, height=16, width=16) * 255).to(torch.uint8)
    settings = {"seed": 1, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    whole = batched_views(RawBatch(batch, torch.arange(20), epoch=2), recipe, **settings)  # type: ignore[arg-type]
    some = torch.tensor([13, 2, 7])
    part = batched_views(RawBatch(batch[some], some, epoch=2), recipe, **settings)  # type: ignore[arg-type]
    other = batched_views(RawBatch(batch[some], some, epoch=3), recipe, **settings)  # type: ignore[arg-type]
    for crop, all_of_it, later in zip(part.crops, whole.crops, other.crops, strict=True):
        torch.testing.assert_close(crop, all_of_it[some], **CLOSE)
        assert not torch.allclose(crop, later, atol=1e-2)


def test_stored_images_stay_as_they_are() -> None:
    stored = images(8, height=16, width=16)
    kept = stored.clone()
    recipe = ViewRecipe([CropSpec(16, Augment(jitter=1, brightness=0.5, solarize=1, noise=0.5), count=2)])
    batched_views(RawBatch(stored, torch.arange(8), 0), recipe, seed=0, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert torch.equal(stored, kept)


def test_normalisation_and_bookkeeping() -> None:
    stored = (images(4, height=8, width=8) * 255).to(torch.uint8)
    batch = RawBatch(stored, torch.tensor([5, 6, 7, 8]), 0, labels=torch.arange(4))
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    views = batched_views(batch, ViewRecipe([CropSpec(8, Augment())]), seed=0, mean=mean, std=std)
    torch.testing.assert_close(views.crops[0], F.normalize(stored / 255, mean, std), **CLOSE)
    assert views.crops[0].dtype == torch.float32
    assert views.index is not None
    assert views.index.tolist() == [5, 6, 7, 8]
    assert views.labels is batch.labels


def test_as_float() -> None:
    assert as_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    assert as_float(torch.tensor([0.25], dtype=torch.float64)).dtype == torch.float32


def test_noise_has_its_strength() -> None:
    recipe = ViewRecipe([CropSpec(16, Augment(noise=0.3))])
    flat = RawBatch(torch.full((64, 1, 16, 16), 0.5), torch.arange(64), 0)
    crop = batched_views(flat, recipe, seed=0, mean=(0.5,), std=(1.0,)).crops[0]
    assert crop.std().item() == pytest.approx(0.3, rel=0.02)
    assert crop.mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("name", ["byol", "dino", "warped"])
def test_nothing_waits_for_the_device(name: str) -> None:
    """A meta tensor has no values: any read of one back to the CPU, and any mix of devices, raises."""
    warped = ViewRecipe([CropSpec(16, Augment(rotate=20, crop_scale=(0.5, 1.0), jitter=1, contrast=0.3, noise=0.1))])
    recipe = warped if name == "warped" else named_recipe(name, 16)
    batch = RawBatch(torch.empty(30, 3, 20, 20, dtype=torch.uint8, device="meta"), torch.arange(30), epoch=0)
    views = batched_views(batch, recipe, seed=0, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert {crop.device.type for crop in views.crops} == {"meta"}
    assert [crop.shape[-1] for crop in views.crops] == [spec.size for spec in recipe.flat]
