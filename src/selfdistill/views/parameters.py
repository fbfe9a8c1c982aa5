"""The random parameters of a view, drawn for a whole batch at once and shared by both engines.

The engines only execute what stands here: a sample's view differs between them by resampling and rounding, never by
chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfdistill.views.randomness import key, normal, uniform
from selfdistill.views.specs import Augment

# Attempts at a crop that fits before the central one is taken: torchvision's RandomResizedCrop makes as many.
_ATTEMPTS = 10
# Names of single draws behind the crop's attempts. Append only: a new name then leaves all other draws as they are.
_DRAWS = (
    *("top", "left", "flip", "rotate", "shift_x", "shift_y", "zoom", "shear"),
    *("jitter", "brightness", "contrast", "saturation", "hue", "order_0", "order_1", "order_2", "order_3"),
    *("grayscale", "blur", "sigma", "solarize"),
)
# Columns of `Parameters.factors`.
FACTORS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Parameters:
    """One view of B samples. Tensors are [B], on the CPU, float32 unless said otherwise.

    Attributes:
        index: int64, the samples' indices in the data set.
        box: [B, 4] int64 (top, left, height, width) of the crop, in pixels of the image.
        flip, jitter, grayscale, blur, solarize: bool, whether the operation is applied.
        angle: degrees, clockwise.
        shear: degrees, of vertical lines, tops to the right.
        shift: [B, 2] (right, down) as a share of the view's side.
        zoom: magnification.
        factors: [B, 4] brightness, contrast and saturation factor, hue shift.
        order: [B, 4] int64, a permutation of the columns of `factors`.
        sigma: pixels of the view.
        noise_key: see `noise`.
    """

    index: Tensor
    box: Tensor
    flip: Tensor
    angle: Tensor
    shift: Tensor
    zoom: Tensor
    shear: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor
    noise_key: int

    def only(self, row: int) -> Parameters:
        """Those of one sample, still with the leading dimension."""
        tensors: dict[str, Any] = {
            name: value[row : row + 1] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def noise(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Standard normal values for a batch of `shape` [B, C, h, w], drawn on `device`."""
        return normal(self.noise_key, self.index.to(device, non_blocking=True), shape[1:].numel()).view(shape)


def draw(
    augment: Augment, height: Tensor, width: Tensor, index: Tensor, *, seed: int, epoch: int, crop: int
) -> Parameters:
    """Draw the parameters of view number `crop` of each sample.

    Args:
        augment: the distribution.
        height: [B], of the images, pixels.
        width: [B], likewise.
        index: [B] int64, the samples' indices in the data set, on the CPU.
        seed: of the run.
        epoch: in which the samples are drawn.
        crop: position of the view in the recipe.
    """
    base = key(seed, epoch, crop)
    drawn = uniform(base, index, 2 * _ATTEMPTS + len(_DRAWS))
    u = dict(zip(_DRAWS, drawn[:, 2 * _ATTEMPTS :].unbind(1), strict=True))
    areas, ratios = drawn[:, :_ATTEMPTS], drawn[:, _ATTEMPTS : 2 * _ATTEMPTS]

    def spread(name: str, greatest: float) -> Tensor:
        return (2 * u[name] - 1) * greatest

    def factor(name: str, greatest: float) -> Tensor:
        return 1 + spread(name, greatest)

    return Parameters(
        index=index,
        box=_box(augment, height, width, areas, ratios, u["top"], u["left"]),
        flip=u["flip"] < augment.flip,
        angle=spread("rotate", augment.rotate),
        shift=torch.stack([spread("shift_x", augment.shift), spread("shift_y", augment.shift)], dim=1),
        zoom=_between(u["zoom"], augment.zoom[0], augment.zoom[1]),
        shear=spread("shear", augment.shear),
        jitter=u["jitter"] < augment.jitter,
        factors=torch.stack(
            [
                factor("brightness", augment.brightness),
                factor("contrast", augment.contrast),
                factor("saturation", augment.saturation),
                spread("hue", augment.hue),
            ],
            dim=1,
        ),
        order=torch.stack([u[f"order_{slot}"] for slot in range(len(FACTORS))], dim=1).argsort(dim=1),
        grayscale=u["grayscale"] < augment.grayscale,
        blur=u["blur"] < augment.blur,
        sigma=_between(u["sigma"], augment.blur_sigma[0], augment.blur_sigma[1]),
        solarize=u["solarize"] < augment.solarize,
        noise_key=key(base, 1),
    )


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _box(
    augment: Augment, height: Tensor, width: Tensor, areas: Tensor, ratios: Tensor, top: Tensor, left: Tensor
) -> Tensor:
    """The random resized crop of Inception (arXiv 1409.4842) with torchvision's rejection rule and fallback."""
    if augment.crop_scale is None:
        zeros = torch.zeros_like(height)
        return torch.stack([zeros, zeros, height, width], dim=1).long()
    low, high = augment.crop_ratio
    area = _between(areas, augment.crop_scale[0], augment.crop_scale[1]) * (height * width)[:, None]
    ratio = (low * (high / low) ** ratios.double()).float()
    tried_w = (area * ratio).sqrt().round()
    tried_h = (area / ratio).sqrt().round()
    fits = (tried_w >= 1) & (tried_w <= width[:, None]) & (tried_h >= 1) & (tried_h <= height[:, None])
    first = fits.int().argmax(dim=1, keepdim=True)
    shape = (width / height).clamp(low, high)
    found = fits.any(dim=1)
    box_w = torch.where(found, tried_w.gather(1, first)[:, 0], torch.minimum(width.float(), (height * shape).round()))
    box_h = torch.where(found, tried_h.gather(1, first)[:, 0], torch.minimum(height.float(), (width / shape).round()))
    box_top = torch.where(found, (top * (height - box_h + 1)).floor(), ((height - box_h) / 2).floor())
    box_left = torch.where(found, (left * (width - box_w + 1)).floor(), ((width - box_w) / 2).floor())
    return torch.stack([box_top, box_left, box_h, box_w], dim=1).long()
