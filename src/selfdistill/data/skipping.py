"""Images of which some cannot be read, for runs that should not end at hour 20 because of one of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfdistill.data.decode import UnreadableImageError
from selfdistill.data.images import ImagesOnDemand

# So many in a row are no accident: a disk is gone, or the folder holds something else.
_MOST = 16


class SkippingImages(Dataset[tuple[Tensor, Tensor]]):
    """For an image that cannot be read the next one of the split that can stands in, with its own label.

    Which one does not depend on processes or time, so a run stays repeatable. An image with a label is replaced by
    one with a label.

    Args:
        images: that are read when asked for.

    Attributes:
        unreadable: [N] bool, in memory that the loader's workers share: those that were asked for in vain.
    """

    def __init__(self, images: ImagesOnDemand) -> None:
        self.images = images
        self.labels = images.labels
        self.unreadable = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        labelled, failed = bool(self.images.labels[index] >= 0), 0
        for at in (*range(index, len(self)), *range(index)):
            if bool(self.images.labels[at] >= 0) is not labelled:
                continue
            try:
                return self.images[at][0], self.labels[at]
            except UnreadableImageError as error:
                self.unreadable[at] = True
                failed, last = failed + 1, error
            if failed == _MOST:
                break
        raise ValueError(f"{failed} images in a row cannot be read, which data.on_error=skip does not bear; {last}")

    def name(self, index: int) -> str:
        """As of the image itself."""
        return self.images.name(index)

    @property
    def names(self) -> list[str]:
        """Of those that were asked for in vain so far."""
        return [self.images.name(index) for index in self.unreadable.nonzero()[:, 0].tolist()]
