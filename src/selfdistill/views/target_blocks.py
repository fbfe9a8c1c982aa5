"""I-JEPA's masks for a whole batch at once: blocks to predict, and a context without them.

As in `mask_functions`: drawn from the given `torch.Generator`, on the CPU, without a loop over images.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from selfdistill.views.mask_counts import LAST, checked_grid, lowest, random_keys

__all__ = ["multi_block_masks"]

# No grid and no setting can hang a loader: after these many tries the outcome is forced.
_TRIES = 20


def multi_block_masks(
    batch: int,
    grid: Sequence[int],
    *,
    targets: int = 4,
    target_scale: Sequence[float] = (0.15, 0.2),
    target_aspect: Sequence[float] = (0.75, 1.5),
    context_scale: Sequence[float] = (0.85, 1.0),
    min_keep: int = 10,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws target blocks and a context block without them (I-JEPA, arXiv 2301.08243).

    The size of a block is drawn once for the batch, its place for each image, so that all images have equally
    many target patches. The context is cut, at random, to the shortest of the batch. Three slips of the
    reference code are not followed: one random number for both scale and aspect, blocks that never reach the
    last row and column, and a cut that always takes the lower right end of the context.

    Args:
        batch: number of images B.
        grid: patches along (height, width).
        targets: target blocks an image M.
        target_scale: lowest and highest share of the image that a target covers.
        target_aspect: lowest and highest height/width ratio of a target.
        context_scale: lowest and highest share of the image that the square context block covers.
        min_keep: fewest context patches an image, at most a quarter of the grid: an image below is drawn
            anew, up to 20 times. Where even that fails, which takes a tiny grid, there is at least one.
        generator: source of randomness.

    Returns:
        Patch indices, int64, ascending: context [B, Nc], targets [B, M, Nt]. No context patch is in a target.
    """
    height, width = checked_grid(grid)
    patches = height * width
    min_keep = max(1, min(min_keep, patches // 4))
    target = _block_size(grid, target_scale, target_aspect, generator)
    window = _block_size(grid, context_scale, (1.0, 1.0), generator)
    if target == (height, width):
        target = (height - 1, width) if height > 1 else (height, width - 1)

    def draw() -> tuple[Tensor, Tensor]:
        target_index = _place(target, grid, (batch, targets), generator)
        window_index = _place(window, grid, (batch,), generator)
        context = torch.zeros(batch, patches, dtype=torch.bool).scatter_(1, window_index, True)
        return context.scatter_(1, target_index.flatten(1), False), target_index

    context, target_index = draw()
    for _ in range(_TRIES):
        short = context.sum(1) < min_keep
        if not short.any():
            break
        other_context, other_index = draw()
        context[short], target_index[short] = other_context[short], other_index[short]
    # One block never covers the grid: put all targets of a hopeless image in the same place.
    empty = ~context.any(1)
    target_index[empty] = target_index[empty, :1]
    context[empty] = torch.ones_like(context[empty]).scatter_(1, target_index[empty, 0], False)

    shortest = context.sum(1).amin().expand(batch).numpy()
    keys = random_keys(batch, grid, generator) + (~context).numpy().astype(np.int64) * LAST
    return torch.from_numpy(lowest(keys, shortest)).nonzero()[:, 1].view(batch, -1), target_index


def _block_size(
    grid: Sequence[int], scale: Sequence[float], aspect: Sequence[float], generator: Generator | None
) -> tuple[int, int]:
    height, width = grid
    draw = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    area = max(1, int(height * width * (scale[0] + draw[0] * (scale[1] - scale[0]))))
    ratio = aspect[0] + draw[1] * (aspect[1] - aspect[0])
    rows = min(max(1, round(math.sqrt(area * ratio))), height)
    return rows, min(max(1, round(math.sqrt(area / ratio))), width)


def _place(size: tuple[int, int], grid: Sequence[int], shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    """Patch indices of blocks of one size at uniformly drawn places: int64 [*shape, rows * columns]."""
    (rows, columns), (height, width) = size, grid
    top = torch.randint(height - rows + 1, shape, generator=generator)
    left = torch.randint(width - columns + 1, shape, generator=generator)
    inside = (torch.arange(rows)[:, None] * width + torch.arange(columns)).flatten()
    return (top * width + left)[..., None] + inside
