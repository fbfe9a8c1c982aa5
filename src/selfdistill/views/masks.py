"""The mask makers of `mask_functions` and `target_blocks` with their settings bound: the ingredients of a view recipe.

`maker(batch, generator)` draws for B images of `grid` = (height, width) patches, N in all, and returns
tensors by name. In a mask, True means masked; no mask covers a whole image. Settings are checked when the
maker is built. `draw_masks` draws those of a training batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from selfdistill.views.mask_counts import (
    checked_grid,
    independent_ratios,
    mask_counts,
    stratified_ratios,
    visible_index,
)
from selfdistill.views.mask_functions import block_mask, inverse_block_mask, random_mask
from selfdistill.views.randomness import bits, key
from selfdistill.views.target_blocks import multi_block_masks

__all__ = [
    "BlockMask",
    "InverseBlockMask",
    "MaskMaker",
    "MultiBlockMask",
    "RandomMask",
    "block_mask",
    "draw_masks",
    "independent_ratios",
    "inverse_block_mask",
    "mask_counts",
    "multi_block_masks",
    "patch_grid",
    "random_mask",
    "stratified_ratios",
    "visible_index",
]

# In the place of a crop's number in the key of its parameters: a stream of its own.
_STREAM = -1


class MaskMaker(Protocol):
    """`maker(batch, generator)`: tensors of `batch` rows by name.

    Those of this package state the names in `makes`, by which a method that reads others is refused before it is built.
    """

    @property
    def grid(self) -> Sequence[int]:
        """Patches along (height, width)."""
        ...

    def __call__(self, batch: int, generator: Generator | None = None) -> dict[str, Tensor]: ...


def draw_masks(make: MaskMaker, index: Tensor, crops: int, *, seed: int, epoch: int) -> dict[str, Tensor]:
    """The masks of a batch, an independent one for each masked crop of each image: `Views.masks`.

    They depend on the arguments alone. Unlike an image's views they depend on the batch that it comes in,
    because some makers share something within it: DINOv2's ratios, the sizes of I-JEPA's blocks.

    Args:
        make: of the recipe.
        index: [B] int64, the samples' indices in the data set.
        crops: G, number of masked crops.
        seed: of the run.
        epoch: in which the samples are drawn.
    """
    drawn_from = int(bits(key(seed, epoch, _STREAM), index, 1).sum())
    masks = make(crops * len(index), Generator().manual_seed(drawn_from))
    if "mask" in masks:
        mask = masks["mask"]
        masks["masked"], masks["masked_weight"] = _masked_tokens(mask)
        masks["mask"] = mask.view(crops, len(index), -1)
    return masks


def _masked_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, _ = mask.nonzero(as_tuple=True)
    if not len(rows):
        # A head needs a row to work on, and its parameters a gradient: any token, of weight 0.
        return torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    return mask.flatten().nonzero()[:, 0], 1 / mask.sum(1)[rows]


def patch_grid(size: int, patch: int) -> tuple[int, int]:
    """The grid of a crop of `size`² pixels in patches of `patch`², as configurations state it.

    Raises:
        ValueError: a size that is not a multiple of the patch.
    """
    if patch < 1 or size % patch:
        raise ValueError(
            f"masks: a crop of {size} pixels is no multiple of a patch of {patch}; change data.image.patch or the size"
        )
    return size // patch, size // patch


@dataclass(frozen=True)
class RandomMask:
    """Equally many patches of each image, at random: {"mask": bool [B, N], "keep": int64 [B, Nk], the others}.

    MSN drops a share of .15 so.
    """

    makes: ClassVar[tuple[str, ...]] = ("mask", "keep")

    grid: Sequence[int]
    ratio: float

    def __post_init__(self) -> None:
        _freeze(self, "grid")
        checked_grid(self.grid)
        _check_between("ratio", self.ratio, 0, 1)

    def __call__(self, batch: int, generator: Generator | None = None) -> dict[str, Tensor]:
        mask = random_mask(batch, self.grid, self.ratio, generator=generator)
        return {"mask": mask, "keep": visible_index(mask)}


@dataclass(frozen=True)
class BlockMask:
    """Unions of rectangles, with a ratio of its own for each image: {"mask": bool [B, N]}.

    The defaults are DINOv2's. iBOT is `stratified=False`; data2vec is `ratio_range=(120 / 196, 120 / 196)`,
    `probability=1`, `min_block=16`.

    Attributes:
        grid: patches along (height, width).
        ratio_range: lowest and highest share of masked patches.
        probability: share of the images that are masked at all.
        stratified: ratios from `stratified_ratios` (at least one image is masked) or from
        `independent_ratios`.
        min_masked: fewest masked patches of a masked image.
        min_block: smallest area of a block, in patches.
        aspect: lowest and highest height/width ratio of a block.
    """

    makes: ClassVar[tuple[str, ...]] = ("mask",)

    grid: Sequence[int]
    ratio_range: Sequence[float] = (0.1, 0.5)
    probability: float = 0.5
    stratified: bool = True
    min_masked: int = 1
    min_block: int = 4
    aspect: Sequence[float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        _freeze(self, "grid", "ratio_range", "aspect")
        checked_grid(self.grid)
        _check_range("ratio_range", self.ratio_range, 0, 1)
        _check_between("probability", self.probability, 0, 1)
        _check_range("aspect", self.aspect, 1e-3, 1e3)

    def __call__(self, batch: int, generator: Generator | None = None) -> dict[str, Tensor]:
        draw = stratified_ratios if self.stratified else independent_ratios
        low, high = self.ratio_range
        ratios = draw(batch, low, high, self.probability, generator=generator)
        counts = mask_counts(ratios, self.grid, min_masked=self.min_masked)
        mask = block_mask(counts, self.grid, min_block=self.min_block, aspect=self.aspect, generator=generator)
        return {"mask": mask}


@dataclass(frozen=True)
class InverseBlockMask:
    """All but small squares: {"mask": bool [B, N], "keep": int64 [B, Nk]}.

    The defaults are data2vec 2.0's; see `inverse_block_mask`.
    """

    makes: ClassVar[tuple[str, ...]] = ("mask", "keep")

    grid: Sequence[int]
    ratio: float = 0.8
    block: int = 3
    adjust: float = 0.07

    def __post_init__(self) -> None:
        _freeze(self, "grid")
        checked_grid(self.grid)
        _check_between("ratio", self.ratio, 0, 1)
        _check_between("block", self.block, 1, min(self.grid))
        _check_between("adjust", self.adjust, 0, 1)

    def __call__(self, batch: int, generator: Generator | None = None) -> dict[str, Tensor]:
        mask = inverse_block_mask(
            batch, self.grid, self.ratio, block=self.block, adjust=self.adjust, generator=generator
        )
        return {"mask": mask, "keep": visible_index(mask)}


@dataclass(frozen=True)
class MultiBlockMask:
    """Context and target patches: {"context": int64 [B, Nc], "targets": int64 [B, M, Nt]}.

    The defaults are I-JEPA's; see `multi_block_masks`.
    """

    makes: ClassVar[tuple[str, ...]] = ("context", "targets")

    grid: Sequence[int]
    targets: int = 4
    target_scale: Sequence[float] = (0.15, 0.2)
    target_aspect: Sequence[float] = (0.75, 1.5)
    context_scale: Sequence[float] = (0.85, 1.0)
    min_keep: int = 10

    def __post_init__(self) -> None:
        _freeze(self, "grid", "target_scale", "target_aspect", "context_scale")
        checked_grid(self.grid)
        _check_between("targets", self.targets, 1, 1000)
        _check_range("target_scale", self.target_scale, 0, 1)
        _check_range("target_aspect", self.target_aspect, 1e-3, 1e3)
        _check_range("context_scale", self.context_scale, 0, 1)

    def __call__(self, batch: int, generator: Generator | None = None) -> dict[str, Tensor]:
        context, targets = multi_block_masks(
            batch,
            self.grid,
            targets=self.targets,
            target_scale=self.target_scale,
            target_aspect=self.target_aspect,
            context_scale=self.context_scale,
            min_keep=self.min_keep,
            generator=generator,
        )
        return {"context": context, "targets": targets}


def _freeze(maker: object, *fields: str) -> None:
    """Tuples in the place of the lists that come from a configuration."""
    for field in fields:
        object.__setattr__(maker, field, tuple(getattr(maker, field)))


def _check_between(name: str, given: float, lowest: float, highest: float) -> None:
    if not lowest <= given <= highest:
        raise ValueError(f"{name}: got {given}, allowed is a number in [{lowest}, {highest}]")


def _check_range(name: str, given: Sequence[float], lowest: float, highest: float) -> None:
    if len(given) != 2 or not lowest <= given[0] <= given[1] <= highest:
        raise ValueError(
            f"{name}: got {tuple(given)}, allowed are (low, high) with {lowest} <= low <= high <= {highest}"
        )
