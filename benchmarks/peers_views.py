"""Views and masks of ours beside lightly's. Chance decides what comes out: shapes are compared, not values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from measure import Pair, Row
from torch import Tensor

from selfdistill.data.images import IMAGENET_MEAN, IMAGENET_STD
from selfdistill.views import RawBatch, ViewLoader, batched_views, named_recipe
from selfdistill.views.masks import BlockMask, MultiBlockMask


def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth random images, uint8 [count, 3, height, width]."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (smooth.clamp(0, 1) * 255).to(torch.uint8)


class Pictures(torch.utils.data.Dataset[Any]):
    """PIL images in memory, changed by a transform where there is one."""

    def __init__(self, images: Tensor, transform: Any = None) -> None:
        from torchvision.transforms.functional import to_pil_image

        self.images = [to_pil_image(image) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), 0


def one_epoch(loader: Any) -> None:
    for _ in loader:
        pass


def batched(batch: int = 256) -> Pair:
    from lightly.transforms import BYOLTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    images = pictures(batch, 32, 32)
    recipe = named_recipe("byol", 32)
    raw = RawBatch(images, torch.arange(batch), epoch=0)
    transform = BYOLTransform(BYOLView1Transform(input_size=32), BYOLView2Transform(input_size=32))
    theirs = torch.utils.data.DataLoader(Pictures(images, transform), batch_size=batch)

    def ours() -> None:
        batched_views(raw, recipe, seed=0, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    return Pair(ours, lambda: one_epoch(theirs))


def cpu(views: str, count: int = 32, batch: int = 16, workers: int = 0) -> Pair:
    from lightly.transforms import BYOLTransform, DINOTransform

    images = pictures(count, 375, 500)
    transform = BYOLTransform() if views == "byol" else DINOTransform(n_local_views=8)
    ours = ViewLoader(Pictures(images), views=views, batch_size=batch, num_workers=workers)
    theirs = torch.utils.data.DataLoader(Pictures(images, transform), batch_size=batch, num_workers=workers)
    return Pair(lambda: one_epoch(ours), lambda: one_epoch(theirs))


def block_masks(batch: int = 128) -> Pair:
    from lightly.models.utils import random_block_mask

    maker, generator = BlockMask((14, 14)), torch.Generator().manual_seed(0)
    assert maker(batch, generator)["mask"].shape == random_block_mask((batch, 14, 14)).flatten(1).shape

    def ours() -> None:
        maker(batch, generator)

    def theirs() -> None:
        random_block_mask((batch, 14, 14))

    return Pair(ours, theirs)


def ijepa_masks(batch: int = 128) -> Pair:
    from lightly.data.ijepa_collate import IJEPAMaskCollator

    maker, generator = MultiBlockMask((14, 14)), torch.Generator().manual_seed(0)
    collator = IJEPAMaskCollator(
        enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2), aspect_ratio=(0.75, 1.5), nenc=1, npred=4, min_keep=10
    )
    items = list(torch.zeros(batch, 1))

    def ours() -> None:
        torch.utils.data.default_collate(items)
        maker(batch, generator)

    def theirs() -> None:
        collator(items)

    return Pair(ours, theirs)


ROWS = [
    Row("BYOL's views at 32 px: batched engine, against PIL image by image", 4.0, batched, repeats=9),
    Row("BYOL's views at 224 px: CPU engine, no workers", 1.2, lambda: cpu("byol"), repeats=9),
    Row("DINO's views at 224 px, 2 + 8: CPU engine, no workers", 1.2, lambda: cpu("dino"), repeats=9),
    Row("Block masks, 128 images, 14 × 14", 20.0, block_masks, repeats=15),
    Row("I-JEPA's collate, 128 images, 14 × 14", 10.0, ijepa_masks, repeats=15),
]
