"""Images of a split, in memory or in files, each with its label."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from selfdistill.data.decode import UnreadableImageError, decoded

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
        try:
            return decoded(self.paths[index]), self.labels[index]
        except UnreadableImageError as error:
            raise UnreadableImageError(
                f"{self.paths[index]} {error}; repair it, take it out, or set data.on_error=skip"
            ) from error

    def name(self, index: int) -> str:
        """The file."""
        return str(self.paths[index])


class ImagesOnDemand(Protocol):
    """What `ImageFiles` is an example of: images that are read when asked for, of whatever sizes they have."""

    labels: Tensor

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """uint8 [3, H, W], and the label; an `UnreadableImageError` where it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """By which a person finds the image."""
        ...


Images = TensorImages | ImagesOnDemand
