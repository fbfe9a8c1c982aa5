"""Images of a split, in memory or in files, each with its label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

# Of ImageNet's training images, values in [0, 1]: what published networks are fed with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of one size that are held in memory.

    Args:
        images: [N, C, H, W], uint8 in [0, 255] or float32 in [0, 1].
        labels: [N] int64, -1 for an image without label.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files, read when asked for, as uint8 [3, H, W] of whatever size they have.

    Args:
        paths: the files.
        labels: [N] int64, -1 for an image without label.
    """

    def __init__(self, paths: list[Path], labels: Tensor) -> None:
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no readable image ({error}); repair it or take it out") from error
        return torch.from_numpy(pixels).permute(2, 0, 1), self.labels[index]


Images = TensorImages | ImageFiles
