"""Patch masks for a whole batch at once: random, block and inverse block.

`B` images of `N = H * W` patches in row-major order; in a mask, True means masked. Everything is drawn from
the given `torch.Generator` (the default one if None) without a loop over images, and is meant for the collate
function, that is for the CPU and off the training process: hence numpy inside, whose calls and sort are
several times quicker than torch's on arrays this small. No mask ever covers a whole image.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from selfdistill.views.mask_counts import LAST, checked_grid, lowest, mask_counts, random_keys

__all__ = ["block_mask", "inverse_block_mask", "random_mask"]

# Float32 holds one binary digit a block exactly up to 24 blocks; 16 reach the count of nearly all images.
_BLOCKS = 16


def random_mask(batch: int, grid: Sequence[int], ratio: float, *, generator: Generator | None = None) -> Tensor:
    """Masks equally many patches of each image, uniformly at random (MSN, arXiv 2204.07141).

    Args:
        batch: number of images B.
        grid: patches along (height, width).
        ratio: share of masked patches in [0, 1]; see `mask_counts` for the rounding.
        generator: source of randomness.

    Returns:
        Bool [B, N].
    """
    counts = mask_counts(torch.full((batch,), ratio), grid)
    return torch.from_numpy(lowest(random_keys(batch, grid, generator), counts.numpy()))


def block_mask(
    counts: Tensor,
    grid: Sequence[int],
    *,
    min_block: int = 4,
    aspect: Sequence[float] = (0.3, 1 / 0.3),
    generator: Generator | None = None,
) -> Tensor:
    """Masks exactly `counts[b]` patches of image b, as a union of rectangles (BEiT, arXiv 2106.08254).

    The paper's algorithm 1, for all blocks of all images at once: up to 16 blocks, each with an area uniform
    between `min_block` and what is still to be masked (as if blocks did not overlap) and a height/width ratio
    log-uniform over the part of `aspect` that fits in the grid. Patches are masked in the order in which the
    blocks reach them, until the count is met: the paper lets the last block overshoot, the reference code
    gives up short of the count, here the last block is cut. What 16 blocks leave over, which happens from
    ratios of about one half, is filled up from a side of the image.

    Args:
        counts: int64 [B], patches to mask in each image, each in [0, N - 1].
        grid: patches along (height, width).
        min_block: smallest area of a block, in patches (4 in DINOv2, 16 in BEiT and data2vec); an image with
            a smaller count has smaller blocks.
        aspect: lowest and highest height/width ratio.
        generator: source of randomness.

    Returns:
        Bool [B, N].

    Raises:
        ValueError: a count outside [0, N - 1].
    """
    height, width = checked_grid(grid)
    patches = height * width
    wanted = counts.numpy()
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < patches:
        raise ValueError(
            f"counts: got {wanted.min()} to {wanted.max()}, allowed are 0 to {patches - 1} on the grid"
            f" {height}x{width}; mask_counts(ratios, grid) makes valid ones"
        )
    active = wanted > 0
    wanted = wanted[active]
    draw = torch.rand(4, len(wanted), _BLOCKS, generator=generator).numpy()
    # Uniform shares of what the blocks before have left: 1 - u_1, u_1 (1 - u_2), u_1 u_2 (1 - u_3), ...
    left = np.cumprod(draw[0], axis=1)
    share = np.concatenate([np.ones_like(left[:, :1]), left[:, :-1]], axis=1) - left
    total = wanted[:, None].astype(np.float32)
    smallest = np.minimum(total, max(1, min_block))
    log_area = np.log(smallest + share * (total - smallest))
    low = np.maximum(log_area - 2 * math.log(width), math.log(aspect[0]))
    high = np.minimum(2 * math.log(height) - log_area, math.log(aspect[1]))
    log_aspect = low + draw[1] * (high - low)
    rows = _intervals(np.exp((log_area + log_aspect) / 2), height, draw[2])
    columns = _intervals(np.exp((log_area - log_aspect) / 2), width, draw[3])
    # One binary digit a block, the first block's highest: the larger the number, the earlier a block comes.
    digits = np.exp2(np.arange(_BLOCKS - 1, -1, -1, dtype=np.float32))
    reached = (rows * digits[:, None]).transpose(0, 2, 1) @ columns
    side = torch.randint(8, (len(wanted),), generator=generator).numpy()
    # A narrower integer sorts twice as fast.
    integer = np.dtype(np.int32 if patches << _BLOCKS < 1 << 31 else np.int64)
    keys = _sweeps(height, width, integer).take(side, axis=0)
    keys -= reached.reshape(-1, patches).astype(integer) * patches
    mask = np.zeros((len(active), patches), dtype=bool)
    mask[active] = lowest(keys, wanted)
    return torch.from_numpy(mask)


def inverse_block_mask(
    batch: int,
    grid: Sequence[int],
    ratio: float,
    *,
    block: int = 3,
    adjust: float = 0.07,
    generator: Generator | None = None,
) -> Tensor:
    """Leaves small square blocks visible and masks the rest (data2vec 2.0, arXiv 2212.07525).

    `N (1 - ratio + adjust) / block²` centres are drawn with replacement; the squares around them, cut at the
    border, are visible. Random patches are then added or taken away, for the exact number of visible ones.

    Args:
        batch: number of images B; several masks an image are simply a larger batch.
        grid: patches along (height, width).
        ratio: share of masked patches in [0, 1] (.8 in the paper); see `mask_counts` for the rounding.
        block: side of a visible square, in patches.
        adjust: share of patches added to the visible ones before overlaps are subtracted.
        generator: source of randomness.

    Returns:
        Bool [B, N], the same number of True in each row.
    """
    height, width = checked_grid(grid)
    patches = height * width
    masked = mask_counts(torch.full((batch,), ratio), grid)
    centres = max(1, int(patches * (1 - ratio + adjust) / block**2))
    seeds = torch.zeros(batch, patches)
    seeds.scatter_(1, torch.randint(patches, (batch, centres), generator=generator), 1.0)
    before = block // 2
    after = block - 1 - before
    padded = F.pad(seeds.view(batch, 1, height, width), (after, before, after, before))
    visible = F.max_pool2d(padded, block, stride=1).flatten(1)
    keys = random_keys(batch, grid, generator) + visible.numpy().astype(np.int64) * LAST
    return torch.from_numpy(lowest(keys, masked.numpy()))


def _intervals(lengths: NDArray[np.float32], size: int, draw: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 inside an interval of rounded length at a uniformly drawn place, 0 outside: [...] -> [..., size]."""
    whole = np.clip(np.rint(lengths), 1, size)
    start = (draw * (size - whole + 1)).astype(np.intp)
    steps: NDArray[np.float32] = np.tri(size + 1, size, -1, dtype=np.float32)
    inside: NDArray[np.float32] = steps.take(start + whole.astype(np.intp), axis=0) - steps.take(start, axis=0)
    return inside


@functools.cache
def _sweeps(height: int, width: int, integer: np.dtype[np.integer]) -> NDArray[np.integer]:
    """Eight orders of the patches, by rows or by columns from each corner: ranks [8, N]."""
    patches = np.arange(height * width, dtype=integer)
    orders = (patches.reshape(height, width), patches.reshape(width, height).T)
    return np.stack([turned.flatten() for o in orders for turned in (o, o[::-1], o[:, ::-1], o[::-1, ::-1])])
