"""Small pictures on one sheet: what the page cuts its tiles from, and what a person or wandb can look at as it is."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.files import whole_file

GAP = 2
"""White pixels right of a tile and below it."""

# Pixels: smaller pictures are enlarged to at least this side, each of their pixels to a square.
_LEAST = 48
# Bytes: a page has to stay under 3 MB, and photographs as PNG would not.
_MOST_PNG = 200_000


def tile_side(size: int, most: int) -> int:
    """Side in pixels of the tiles that show pictures of ``size``: a multiple where these are small, else ``most``."""
    return size * -(-_LEAST // size) if size < _LEAST else min(size, most)


def as_tiles(images: Tensor, side: int) -> Tensor:
    """``[N, C, h, w]`` in [0, 1] to ``[N, 3, side, side]`` on the CPU; channels that are no colours are averaged."""
    images = images.detach().float().cpu()
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    if max(images.shape[-2:]) > side:
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    else:
        images = F.interpolate(images, size=(side, side), mode="nearest-exact")
    return images.clamp(0, 1).expand(-1, 3, -1, -1)


def save_sheet(folder: Path, name: str, tiles: Tensor) -> dict[str, object]:
    """Write ``tiles`` ``[rows, columns, 3, side, side]`` as one picture, a PNG or, where that is large, a JPEG.

    Returns:
        What the page needs to cut them out again: ``sheet`` (the file's name), ``tile``, ``rows``, ``columns``.
    """
    from PIL import Image

    rows, columns, _, side, _ = tiles.shape
    sheet = F.pad(tiles, (0, GAP, 0, GAP), value=1.0).permute(0, 3, 1, 4, 2).reshape(rows * (side + GAP), -1, 3)
    picture = Image.fromarray(sheet.mul(255).round().to(torch.uint8).numpy())
    stored = BytesIO()
    picture.save(stored, "PNG")
    file = f"{name}.png"
    if stored.tell() > _MOST_PNG:
        stored = BytesIO()
        picture.save(stored, "JPEG", quality=85, subsampling=0)
        file = f"{name}.jpg"
    with whole_file(folder / file) as temporary:
        temporary.write_bytes(stored.getvalue())
    return {"sheet": file, "tile": side, "rows": rows, "columns": columns}
