"""`ViewLoader`: views of anybody's data set in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from selfdistill.data.images import IMAGENET_MEAN, IMAGENET_STD
from selfdistill.data.sampler import ResumableBatchSampler, ResumableLoader
from selfdistill.views.augment import ViewBatches
from selfdistill.views.recipes import named_recipe
from selfdistill.views.specs import ViewRecipe


class ViewLoader(ResumableLoader):
    """A ready loader of `Views` over anybody's data set: `trainer.fit(BYOL("resnet18"), ViewLoader(dataset))`.

    Views are made by the CPU engine and have three channels: gray images are repeated, others converted to RGB.

    Args:
        dataset: map-style; gives (image, label) or image, the image a PIL one or a uint8 [C, H, W] tensor.
        views: name of a published recipe ("byol", "dino", …: the keys of `RECIPES`) or a recipe.
        batch_size: samples a batch and process; None takes 256, or the whole data set where it is smaller.
        size: side of the (global) views in pixels; only for a named recipe.
        num_workers: processes that make views; 0 makes them in the training process.
        seed: of the order and of the views.
        shuffle: draw the samples in a new order each epoch.
        drop_last: leave out the epoch's last batch where it is smaller.
        mean: of the data, values in [0, 1].
        std: likewise.
    """

    def __init__(
        self,
        dataset: Any,
        views: str | ViewRecipe = "byol",
        *,
        batch_size: int | None = None,
        size: int = 224,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        recipe = named_recipe(views, size) if isinstance(views, str) else views
        if recipe.engine == "batched":
            raise ValueError('views.engine="batched" needs a DataModule; ViewLoader makes views in its workers')
        if batch_size is None:
            batch_size = max(1, min(256, len(dataset)))
        if not 1 <= batch_size <= len(dataset):
            raise ValueError(f"batch_size={batch_size} is not allowed; the data set has {len(dataset)} samples")
        super().__init__(
            ViewBatches(dataset, recipe, seed=seed, mean=mean, std=std),
            ResumableBatchSampler(len(dataset), batch_size, seed, drop_last=drop_last, shuffle=shuffle),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )
