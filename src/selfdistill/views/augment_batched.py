"""The batched engine: all samples of a batch at once, on whatever device the images lie, in pure torch.

Parameters are drawn on the CPU (`parameters.draw`), so which samples an operation touches is known there: it runs on
those alone, and no step waits for the device.

Shapes: B samples, C channels, H × W stored image, s side of the view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.views import colour
from selfdistill.views.parameters import FACTORS, Parameters, draw
from selfdistill.views.specs import Augment, ViewRecipe
from selfdistill.views.views import RawBatch, Views

# The colour operations, in the order of the columns of `Parameters.factors`.
_JITTER = tuple((name, getattr(colour, name)) for name in FACTORS)


def batched_views(
    batch: RawBatch, recipe: ViewRecipe, *, seed: int, mean: Sequence[float], std: Sequence[float]
) -> Views:
    """Make the views of a batch.

    Args:
        batch: the images.
        recipe: the views.
        seed: of the run; with the batch's epoch and a sample's index it fixes that sample's views.
        mean: [C] of the data, values in [0, 1].
        std: [C], likewise.
    """
    images = as_float(batch.images)
    height, width = (torch.full_like(batch.index, side) for side in images.shape[-2:])
    crops = []
    for crop, spec in enumerate(recipe.flat):
        drawn = draw(spec.augment, height, width, batch.index, seed=seed, epoch=batch.epoch, crop=crop)
        view = recolour(resample(images, drawn, spec.augment, spec.size), drawn, spec.augment)
        crops.append(normalize(view, mean, std))
    index = batch.index.to(images.device, non_blocking=True)
    return Views(crops, recipe.roles, masks=batch.masks, labels=batch.labels, index=index)


def as_float(images: Tensor) -> Tensor:
    """float32 values in [0, 1], of uint8 ones in [0, 255] or of floating ones already there."""
    return images.float() if images.is_floating_point() else images.float().div_(255)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images - mean) / std by channel, images [B, C, h, w]."""
    means, stds = (
        torch.tensor(values, dtype=images.dtype).to(images.device, non_blocking=True) for values in (mean, std)
    )
    return (images - means[:, None, None]) / stds[:, None, None]


def resample(images: Tensor, drawn: Parameters, augment: Augment, size: int) -> Tensor:
    """Crop, flip, resize and warp in one go: [B, C, H, W] -> [B, C, s, s]."""
    if augment.warps:
        return _warp(images, drawn, augment, size)
    height, width = images.shape[-2:]
    if augment.crop_scale is None and height == width == size:
        return torch.where(
            drawn.flip.to(images.device, non_blocking=True)[:, None, None, None], images.flip(-1), images
        )
    top, left, box_h, box_w = drawn.box.unbind(1)
    down = resize_matrices(top, box_h, height, size, augment.interpolation)
    across = resize_matrices(left, box_w, width, size, augment.interpolation)
    across = torch.where(drawn.flip[:, None, None], across.flip(1), across)
    down, across = (matrices.to(images.device, non_blocking=True)[:, None] for matrices in (down, across))
    return (down @ images @ across.mT).clamp_(0, 1)


def resize_matrices(start: Tensor, length: Tensor, stored: int, size: int, interpolation: str) -> Tensor:
    """[B, size, stored] weights that resize the pixels [start, start + length) of a row of `stored` to `size`.

    The filter of Pillow and of torch with antialias: a triangle or Keys's cubic (a = -1/2), widened where it shrinks,
    cut at the crop's edges and normalised to a sum of one.
    """
    step = length / size
    widening = step.clamp(min=1)[:, None, None]
    centre = start[:, None] + (torch.arange(size) + 0.5) * step[:, None]
    position = torch.arange(stored)
    distance = ((position + 0.5) - centre[..., None]).abs() / widening
    if interpolation == "bilinear":
        weights = (1 - distance).clamp(min=0)
    else:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    inside = (position >= start[:, None]) & (position < (start + length)[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def _warp(images: Tensor, drawn: Parameters, augment: Augment, size: int) -> Tensor:
    """One `grid_sample` for crop, flip, rotation, shear, zoom and shift; black outside the image.

    The map goes from the view's coordinates in [-1, 1]² back to the image's: undo the shift, the rotation, the shear
    and the zoom, then the flip, then place the crop's box.
    """
    angle, slant = drawn.angle.deg2rad(), drawn.shear.deg2rad().tan()
    cos, sin = angle.cos() / drawn.zoom, angle.sin() / drawn.zoom
    linear = torch.stack([cos - slant * sin, sin + slant * cos, -sin, cos], dim=1).view(-1, 2, 2)
    offset = -2 * linear @ drawn.shift[:, :, None]
    top, left, box_h, box_w = drawn.box.unbind(1)
    height, width = images.shape[-2:]
    mirrored = torch.where(drawn.flip, -1.0, 1.0)
    scale = torch.stack([mirrored * box_w / width, box_h / height], dim=1)[:, :, None]
    centre = torch.stack([(2 * left + box_w) / width - 1, (2 * top + box_h) / height - 1], dim=1)[:, :, None]
    theta = torch.cat([scale * linear, scale * offset + centre], dim=2).to(images.device, non_blocking=True)
    grid = F.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    sampled = F.grid_sample(images, grid, mode=augment.interpolation, padding_mode="zeros", align_corners=False)
    return sampled.clamp_(0, 1)


def recolour(images: Tensor, drawn: Parameters, augment: Augment) -> Tensor:
    """Colour jitter, grayscale, blur, solarize and noise on the samples that drew them, in place.

    Args:
        images: [B, C, s, s] in [0, 1], the caller's to overwrite.
        drawn: the samples' parameters.
        augment: what they were drawn from; an operation of probability or strength zero costs nothing.
    """

    def apply(operation: Callable[[Tensor, Tensor], Tensor], chosen: Tensor, strength: Tensor) -> None:
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            there = rows.to(images.device, non_blocking=True)
            images[there] = operation(images[there], strength[rows].to(images.device, non_blocking=True))

    if augment.jitter:
        for slot in range(len(_JITTER)):
            for column, (name, operation) in enumerate(_JITTER):
                if getattr(augment, name):
                    apply(operation, drawn.jitter & (drawn.order[:, slot] == column), drawn.factors[:, column])
    if augment.grayscale:
        apply(lambda x, _: colour.grayscale(x).expand_as(x), drawn.grayscale, drawn.sigma)
    if augment.blur:
        radius = colour.blur_radius(augment.blur_sigma[1], images.shape[-1])
        apply(lambda x, sigma: colour.gaussian_blur(x, sigma, radius), drawn.blur, drawn.sigma)
    if augment.solarize:
        apply(lambda x, _: colour.solarize(x), drawn.solarize, drawn.sigma)
    if augment.noise:
        images += augment.noise * drawn.noise(images.shape, images.device)
    return images
