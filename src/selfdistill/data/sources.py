"""Where images come from: each source names its facts and gives the three splits as data sets.

Train is for learning and for the k-NN bank, validation for choices made on the way, test for final figures only.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Item = TypeVar("Item", covariant=True)


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of one size that are held in memory.

    Args:
        images: [N, C, H, W], uint8 in [0, 255] or float32 in [0, 1].
        labels: [N] int64, or None.
    """

    def __init__(self, images: Tensor, labels: Tensor | None) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image and its label, -1 without labels."""
        return self.images[index], torch.tensor(-1) if self.labels is None else self.labels[index]


class Source(Protocol):
    """What a `DataModule` needs to know of a data set.

    Attributes:
        channels: of every image.
        size: side in pixels at which images are evaluated.
        mean: [channels] of the training images, values in [0, 1].
        std: [channels], likewise.
        labelled: whether all splits have labels.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labelled: bool

    def split(self, name: Split) -> Dataset[tuple[Tensor, Tensor]] | None:
        """Images of a split: `TensorImages`, or any data set of ([C, H, W] uint8 of any size, label); None where absent."""
        ...


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels in 17 shades; embedded, no download.

    The splits never change and depend on no seed: of each class, in the data set's order, every sixth image from the
    fifth on is validation, every sixth from the sixth on is test, all others are train.
    """

    channels = 1
    size = 8
    labelled = True
    # Of the training split, see the test.
    mean = (0.3052,)
    std = (0.3762,)

    def split(self, name: Split) -> TensorImages:
        """The split's images, float32 [n, 1, 8, 8] in [0, 1], and digits."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        labels = torch.from_numpy(bunch.target).long()
        rank_in_class = torch.empty_like(labels)
        for digit in range(10):
            members = labels == digit
            rank_in_class[members] = torch.arange(int(members.sum()))
        place = rank_in_class % 6
        chosen = {"train": place < 4, "validation": place == 4, "test": place == 5}[name]
        images = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
        return TensorImages(images[chosen], labels[chosen])
