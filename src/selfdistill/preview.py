"""One picture of what the networks will see: each image as it is stored, and every view of it, masks drawn in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from selfdistill.assembly import build_data
from selfdistill.config import UserError, resolved
from selfdistill.data import DataModule
from selfdistill.failures import clear_errors, quiet
from selfdistill.files import whole_file
from selfdistill.report.view_tiles import first_views

if TYPE_CHECKING:
    from PIL import Image

# Pixels: the least side at which a view is shown, the space around it, the line of text above a column.
_LEAST, _GAP, _TITLE = 112, 6, 32


def preview(config: DictConfig) -> None:
    """Write ``config.output``: the first ``config.images`` images of the first training batch and their views.

    Raises:
        UserError: what was asked for cannot work; nothing is written.
    """
    quiet()
    with clear_errors():
        plain = resolved(config)
        output = Path(plain["output"])
        if output.suffix != ".png":
            raise UserError(f"output: {plain['output']!r} given, allowed is a name that ends in .png")
        config = config.copy()
        OmegaConf.resolve(config)
        config.data.batch_size = plain["images"]
        try:
            datamodule = build_data(config)
        except ValueError as error:
            raise UserError(str(error).replace("data.batch_size", "images")) from error
        picture = drawn(datamodule)
        output.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(output) as temporary:
            picture.save(temporary, "PNG")
        print(f"{datamodule.engine} engine, {len(datamodule.recipe.flat)} views an image    written: {output}")


def drawn(datamodule: DataModule) -> Image.Image:
    """A row an image, a column for the stored image and one for each view."""
    return _sheet(*first_views(datamodule, datamodule.batch_size))


def _sheet(titles: list[str], columns: list[Tensor]) -> Image.Image:
    from PIL import Image, ImageDraw

    scale = max(1, -(-_LEAST // max(column.shape[-1] for column in columns)))
    widths = [max(column.shape[-1] * scale, _LEAST) for column in columns]
    height = max(column.shape[-2] for column in columns) * scale
    rows = len(columns[0])
    size = (sum(widths) + _GAP * (len(columns) + 1), _TITLE + rows * (height + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen, left = ImageDraw.Draw(sheet), _GAP
    for title, column, width in zip(titles, columns, widths, strict=True):
        pen.multiline_text((left, 4), title, fill="black")
        for row, image in enumerate(column.cpu()):
            pixels = image.expand(3, -1, -1).mul(255).round().byte().permute(1, 2, 0).numpy()
            small = Image.fromarray(pixels)
            shown = small.resize((small.width * scale, small.height * scale), Image.Resampling.NEAREST)
            sheet.paste(shown, (left, _TITLE + row * (height + _GAP)))
        left += width + _GAP
    return sheet
