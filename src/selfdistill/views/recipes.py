"""The published recipes of views, named as in `ViewLoader` and `conf/views/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from selfdistill.views.masks import BlockMask, MultiBlockMask, RandomMask, patch_grid
from selfdistill.views.specs import Augment, CropSpec, ViewRecipe

# MoCo v2's view (arXiv 2003.04297; moco/main_moco.py with --aug-plus), which SimSiam took over (arXiv 2011.10566).
_MOCO_V2 = Augment(
    crop_scale=(0.2, 1.0),
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.2,
    blur=0.5,
)
# BYOL's first view (arXiv 2006.07733, Table 6); DINO's (arXiv 2104.14294) differs in the area range only.
_BYOL = replace(_MOCO_V2, crop_scale=(0.08, 1.0), interpolation="bicubic", saturation=0.2, blur=1.0)


def byol(size: int) -> ViewRecipe:
    """BYOL's views (arXiv 2006.07733): the first always blurred, the second seldom, and at times solarized."""
    return ViewRecipe((CropSpec(size, _BYOL), CropSpec(size, replace(_BYOL, blur=0.1, solarize=0.2))))


def mocov2(size: int) -> ViewRecipe:
    """MoCo v2's views (arXiv 2003.04297): the query is the student's, the key the teacher's."""
    return ViewRecipe((CropSpec(size, _MOCO_V2, roles=("student",)), CropSpec(size, _MOCO_V2, roles=("teacher",))))


def mocov3(size: int) -> ViewRecipe:
    """MoCo v3's views (arXiv 2104.02057): BYOL's, but never smaller than a fifth of the image."""
    first = replace(_MOCO_V2, saturation=0.2, blur=1.0)
    return ViewRecipe((CropSpec(size, first), CropSpec(size, replace(first, blur=0.1, solarize=0.2))))


def ressl(size: int) -> ViewRecipe:
    """ReSSL's views (arXiv 2107.09282): MoCo v2's for the student, a mere crop and flip for the teacher."""
    weak = Augment(crop_scale=(0.2, 1.0), flip=0.5)
    return ViewRecipe((CropSpec(size, _MOCO_V2, roles=("student",)), CropSpec(size, weak, roles=("teacher",))))


def simsiam(size: int) -> ViewRecipe:
    """SimSiam's views (arXiv 2011.10566): two alike, each the target of the other."""
    return ViewRecipe((CropSpec(size, _MOCO_V2, count=2),))


def dino(size: int, local_size: int | None = None, local_count: int = 8) -> ViewRecipe:
    """DINO's multi-crop (arXiv 2104.14294): two global views for both networks, small local ones for the student.

    Args:
        size: side of the global views.
        local_size: side of the local views; the paper's 96 at 224, in proportion elsewhere.
        local_count: number of local views.
    """
    return ViewRecipe(_multi_crop(size, local_size, local_count, between=0.4))


def ibot(size: int, local_size: int | None = None, local_count: int = 10, patch: int = 16) -> ViewRecipe:
    """iBOT's multi-crop (arXiv 2111.07832): half of the global views are masked, each by a ratio of its own.

    Args:
        size: as `dino`.
        local_size: as `dino`.
        local_count: number of local views.
        patch: side of a patch in pixels.
    """
    masks = BlockMask(patch_grid(size, patch), stratified=False)
    return ViewRecipe(_multi_crop(size, local_size, local_count, between=0.25), masks=masks)


def dinov2(size: int, local_size: int | None = None, local_count: int = 8, patch: int = 16) -> ViewRecipe:
    """DINOv2's multi-crop (arXiv 2304.07193): half of the global views are masked. Arguments as `ibot`."""
    masks = BlockMask(patch_grid(size, patch))
    return ViewRecipe(_multi_crop(size, local_size, local_count, between=0.32), masks=masks)


def data2vec(size: int, patch: int = 16) -> ViewRecipe:
    """data2vec's one view (arXiv 2202.03555), of BEiT's pipeline: 120 of 196 patches are masked, in blocks."""
    jitter = Augment(
        crop_scale=(0.08, 1.0),
        interpolation="bicubic",
        flip=0.5,
        jitter=1.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
    )
    ratio = 120 / 196
    masks = BlockMask(
        patch_grid(size, patch), ratio_range=(ratio, ratio), probability=1.0, stratified=False, min_block=16
    )
    return ViewRecipe((CropSpec(size, jitter),), masks=masks)


def ijepa(size: int, patch: int = 16) -> ViewRecipe:
    """I-JEPA's one view (arXiv 2301.08243): a crop and nothing else, with its context and target blocks."""
    crop = CropSpec(size, Augment(crop_scale=(0.3, 1.0)))
    return ViewRecipe((crop,), masks=MultiBlockMask(patch_grid(size, patch)))


def supervised(size: int) -> ViewRecipe:
    """The views of supervised training (arXiv 1512.03385): crops and flips, two drawn alike, colours as they are."""
    return ViewRecipe((CropSpec(size, Augment(crop_scale=(0.08, 1.0), flip=0.5), count=2),))


def swav(size: int, local_size: int | None = None, local_count: int = 6) -> ViewRecipe:
    """SwAV's multi-crop (arXiv 2006.09882): two large views that get codes, small ones that predict them.

    Arguments as `dino`.
    """
    large = replace(_MOCO_V2, crop_scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    crops = [CropSpec(size, large, count=2)]
    if local_count:
        small = replace(large, crop_scale=(0.05, 0.14))
        crops.append(CropSpec(local_size or round(size * 96 / 224), small, count=local_count, roles=("student",)))
    return ViewRecipe(crops)


def msn(size: int, focal_size: int | None = None, focal_count: int = 10, patch: int = 16) -> ViewRecipe:
    """MSN's views (arXiv 2204.07141): the target, a random view of which patches are dropped, focal views.

    Args:
        size: side of the target and of the random view.
        focal_size: side of the focal views; the paper's 96 at 224, in proportion elsewhere.
        focal_count: number of focal views.
        patch: side of a patch in pixels.
    """
    large = replace(_MOCO_V2, crop_scale=(0.3, 1.0))
    crops = [CropSpec(size, large, roles=("teacher",)), CropSpec(size, large, roles=("student",))]
    if focal_count:
        focal = replace(large, crop_scale=(0.05, 0.3))
        crops.append(CropSpec(focal_size or round(size * 96 / 224), focal, count=focal_count, roles=("student",)))
    return ViewRecipe(crops, masks=RandomMask(patch_grid(size, patch), ratio=0.15))


def _multi_crop(size: int, local_size: int | None, local_count: int, between: float) -> list[CropSpec]:
    """Two global crops of areas above the share `between`, and local ones below."""
    first = replace(_BYOL, crop_scale=(between, 1.0))
    second = replace(first, blur=0.1, solarize=0.2)
    local = replace(first, crop_scale=(0.05, between), blur=0.5)
    crops = [CropSpec(size, first), CropSpec(size, second)]
    if local_count:
        crops.append(CropSpec(local_size or round(size * 96 / 224), local, count=local_count, roles=("student",)))
    return crops


RECIPES: dict[str, Callable[[int], ViewRecipe]] = {
    "byol": byol,
    "data2vec": data2vec,
    "dino": dino,
    "dinov2": dinov2,
    "ibot": ibot,
    "ijepa": ijepa,
    "mocov2": mocov2,
    "mocov3": mocov3,
    "msn": msn,
    "ressl": ressl,
    "simsiam": simsiam,
    "supervised": supervised,
    "swav": swav,
}


def named_recipe(name: str, size: int) -> ViewRecipe:
    """The published recipe `name` at `size`² pixels."""
    if name not in RECIPES:
        raise ValueError(f"views={name!r} is not known; allowed: {', '.join(RECIPES)}, or a ViewRecipe of your own")
    return RECIPES[name](size)
