"""How many patches to mask, and so many at random: ratios within a batch, counts on a grid.

`B` images of `N = H * W` patches.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

__all__ = [
    "checked_grid",
    "independent_ratios",
    "lowest",
    "mask_counts",
    "random_keys",
    "stratified_ratios",
    "visible_index",
]

# Above every key of `random_keys`.
LAST = 1 << 62


def stratified_ratios(
    batch: int, low: float, high: float, probability: float, *, generator: Generator | None = None
) -> Tensor:
    """Mask ratios spread evenly over [low, high] within the batch (DINOv2, arXiv 2304.07193).

    `floor(batch * probability)` images, but at least one, are masked: [low, high] is cut into as many equal
    strata and each gives one ratio. The others have ratio 0. The order is random.

    Returns:
        float32 [B].
    """
    masked = max(1, int(batch * probability)) if probability > 0 else 0
    edges = torch.linspace(low, high, masked + 1)
    ratios = torch.zeros(batch)
    ratios[:masked] = torch.lerp(edges[:-1], edges[1:], torch.rand(masked, generator=generator))
    return ratios[torch.randperm(batch, generator=generator)]


def independent_ratios(
    batch: int, low: float, high: float, probability: float, *, generator: Generator | None = None
) -> Tensor:
    """Mask ratios drawn for each image alone (iBOT, arXiv 2111.07832).

    Uniform in [low, high] with `probability`, otherwise 0. A small batch may come out without a single masked
    image; `stratified_ratios` cannot.

    Returns:
        float32 [B].
    """
    draw = torch.rand(2, batch, generator=generator)
    return torch.where(draw[0] < probability, low + (high - low) * draw[1], 0.0)


def mask_counts(ratios: Tensor, grid: Sequence[int], *, min_masked: int = 1) -> Tensor:
    """Turns ratios [B] in [0, 1] into numbers of masked patches, int64 [B].

    A ratio of 0 gives 0; any other the nearest whole number, within [min_masked, N - 1].
    """
    height, width = checked_grid(grid)
    if len(ratios) and not 0 <= float(ratios.min()) <= float(ratios.max()) <= 1:
        raise ValueError(f"ratios: got {ratios.tolist()}, allowed are numbers in [0, 1]")
    patches = height * width
    counts = (ratios.double() * patches).round().long().clamp(min=min_masked).clamp(max=patches - 1)
    return torch.where(ratios > 0, counts, 0)


def visible_index(mask: Tensor) -> Tensor:
    """Indices of the patches that are not masked, ascending: bool [B, N] -> int64 [B, Nv].

    Raises:
        ValueError: the images have different numbers of masked patches.
    """
    visible = ~mask
    counts = visible.sum(1)
    if (counts != counts[:1]).any():
        raise ValueError(
            f"mask: got rows with {int(counts.min())} to {int(counts.max())} visible patches, allowed is the"
            " same number in all rows; use one ratio for the whole batch"
        )
    return visible.nonzero()[:, 1].view(len(mask), -1)


def checked_grid(grid: Sequence[int]) -> tuple[int, int]:
    """(height, width), or a ValueError that names the argument."""
    if len(grid) != 2 or min(grid) < 1 or math.prod(grid) < 2:
        raise ValueError(
            f"grid: got {tuple(grid)}, allowed is (height, width) in patches, with at least 2 patches;"
            " use a smaller patch size or a larger image"
        )
    return grid[0], grid[1]


def random_keys(batch: int, grid: Sequence[int], generator: Generator | None) -> NDArray[np.int64]:
    """Random integers below 2^62, all different within a row: [B, N]."""
    patches = math.prod(grid)
    draw = torch.randint(1 << 40, (batch, patches), generator=generator).numpy()
    return draw * patches + np.arange(patches)


def lowest(keys: NDArray[np.integer], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True at the `counts[b]` < N lowest keys of row b, which all differ: [B, N], [B] -> [B, N]."""
    ordered = np.sort(keys, axis=1)
    return keys < ordered[np.arange(len(keys)), counts][:, None]
