"""Colour and blur of a batch, each sample with its own strength; values in [0, 1], images [N, C, h, w].

The definitions are torchvision's (`torchvision.transforms.v2.functional` on floating images), which are Pillow's
without the rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)


def grayscale(images: Tensor) -> Tensor:
    """[N, 1, h, w] luma (ITU-R 601) of colour images; images of one channel are it already."""
    if images.shape[1] == 1:
        return images
    return (images * _channels(_LUMA, images)).sum(1, keepdim=True)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; factor [N]."""
    return (images * _per_sample(factor)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean luma; factor [N]."""
    return _blend(images, grayscale(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's grayscale; factor [N]."""
    return _blend(images, grayscale(images), factor)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` [N] of the colour circle, through HSV; images of one channel have none and stay."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sector + 6 * shift[:, None, None]
    # HSV to RGB in one formula: each channel is value less chroma times a trapezoid of the hue.
    phase = (_channels((5.0, 3.0, 1.0), images) + turned[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(phase, 4 - phase).clamp_(0, 1)


def solarize(images: Tensor) -> Tensor:
    """Invert all values from one half up."""
    return torch.where(images >= 0.5, 1 - images, images)


def blur_radius(greatest_sigma: float, size: int) -> int:
    """Half width of a kernel that loses less than 1e-4 of the Gaussian; reflection at the border allows size - 1."""
    return min(math.ceil(4 * greatest_sigma), size - 1)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with reflection at the border, as two banded matrices a sample.

    Args:
        images: [N, C, h, w].
        sigma: [N], pixels.
        radius: half width of the kernel, smaller than h and w.
    """
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1).to(images.dtype)
    down, across = (_band(kernel, side)[:, None] for side in images.shape[-2:])
    return down @ images @ across.mT


def _band(kernel: Tensor, side: int) -> Tensor:
    """[N, side, side] matrices that convolve a reflected line of `side` values with kernels [N, 2r + 1]."""
    radius = kernel.shape[1] // 2
    line = torch.arange(side, device=kernel.device, dtype=kernel.dtype)
    taps = F.pad(line[None], (radius, radius), mode="reflect")[0].long().unfold(0, kernel.shape[1], 1)
    matrices = kernel.new_zeros(len(kernel), side, side)
    return matrices.scatter_add_(2, taps.expand(len(kernel), -1, -1), kernel[:, None].expand(-1, side, -1))


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    weight = _per_sample(factor)
    return (weight * images + (1 - weight) * other).clamp_(0, 1)


def _channels(values: tuple[float, ...], images: Tensor) -> Tensor:
    """[3, 1, 1] beside `images`; not waiting for the copy matters on a GPU."""
    return torch.tensor(values, dtype=images.dtype).to(images.device, non_blocking=True)[:, None, None]


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]
