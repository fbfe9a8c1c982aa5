"""What loaders read: whole batches at a time, to train on and to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfdistill.data.images import Images, TensorImages
from selfdistill.data.sampler import EpochIndices
from selfdistill.views.augment import centre
from selfdistill.views.augment_batched import as_float, normalize
from selfdistill.views.specs import ViewRecipe
from selfdistill.views.views import RawBatch


class RawBatches(Dataset[RawBatch]):
    """Whole batches of images held in memory, with the masks of their views."""

    def __init__(self, images: TensorImages, recipe: ViewRecipe, seed: int, *, labelled: bool) -> None:
        self.images = images
        self.recipe = recipe
        self.seed = seed
        self.labelled = labelled

    def __getitem__(self, indices: EpochIndices) -> RawBatch:
        index = torch.tensor(indices)
        labels = self.images.labels[index] if self.labelled else None
        masks = self.recipe.draw_masks(index, seed=self.seed, epoch=indices.epoch)
        return RawBatch(self.images.images[index], index, indices.epoch, labels, masks)


def whole_images(images: Images, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Those of ``index`` [B] without augmentation, [B, C, size, size] float32 in [0, 1], and their labels."""
    if isinstance(images, TensorImages):
        return as_float(images.images[index]), images.labels[index]
    pairs = [images[sample] for sample in index.tolist()]
    return as_float(torch.stack([centre(image, size) for image, _ in pairs])), torch.stack(
        [label for _, label in pairs]
    )


class EvaluationBatches(Dataset[tuple[Tensor, Tensor]]):
    """Images as the network is evaluated on them, a whole batch at a time."""

    def __init__(self, images: Images, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images = images
        self.labelled = (images.labels >= 0).nonzero()[:, 0]
        self.size = size
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = self.labelled[indices]
        images, labels = whole_images(self.images, index, self.size)
        return normalize(images, self.mean, self.std), labels
