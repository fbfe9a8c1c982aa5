"""From an encoded image of any kind to uint8 [3, H, W]."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


class UnreadableImageError(ValueError):
    """An image that cannot be read: the file is broken, gone, or no image."""


def decoded(file: Path | BytesIO) -> Tensor:
    """The image as uint8 [3, H, W], as `as_rgb` makes it.

    Raises:
        UnreadableImageError: saying what is wrong with it, as the end of a sentence that begins with its name.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            pixels = np.array(as_rgb(image))
    except UnidentifiedImageError as error:
        raise UnreadableImageError("is no image of a known format") from error
    except Exception as error:  # a broken file leads Pillow's readers to errors of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"is no readable image ({reason})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def as_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits. Of 16 bits the upper ones count: Pillow's own conversion cuts off all above 255."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
