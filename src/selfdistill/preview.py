"""One picture of what the networks will see: each image as it is stored, and every view of it, masks drawn in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from selfdistill.assembly import build_data
from selfdistill.config import UserError, resolved
from selfdistill.data import DataModule
from selfdistill.files import whole_file
from selfdistill.runner import clear_errors, quiet
from selfdistill.views import ViewRecipe, Views

if TYPE_CHECKING:
    from PIL import Image

# Pixels: the least side at which a view is shown, the space around it, the line of text above a column.
_LEAST, _GAP, _TITLE = 112, 6, 32
# Red, green, blue and opacity of what is laid over a hidden patch, and over those of each block to predict.
_HIDDEN = (0.25, 0.35, 0.65, 0.85)
_BLOCKS = ((0.90, 0.62, 0.0, 0.6), (0.34, 0.71, 0.91, 0.6), (0.0, 0.62, 0.45, 0.6), (0.80, 0.47, 0.65, 0.6))


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
        datamodule = build_data(config)
        picture = drawn(datamodule)
        output.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(output) as temporary:
            picture.save(temporary, "PNG")
        print(f"{datamodule.engine} engine, {len(datamodule.recipe.flat)} views an image    written: {output}")


def drawn(datamodule: DataModule) -> Image.Image:
    """A row an image, a column for the stored image and one for each view."""
    views: Views = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    assert views.index is not None
    titles, columns = ["stored"], [datamodule.whole_images(views.index)]
    mean, std = (torch.tensor(values)[:, None, None] for values in (datamodule.source.mean, datamodule.source.std))
    covers = mask_covers(views, datamodule.recipe)
    largest = max(crop.shape[-1] for crop in views.crops)
    for place, (crop, roles) in enumerate(zip(views.crops, views.roles, strict=True)):
        side = crop.shape[-1]
        titles.append(f"{'global' if side == largest else 'local'} {side}x{side}\n{' + '.join(sorted(roles))}")
        picture = (crop * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)
        if place in covers:
            picture = picture.lerp(covers[place][:, :3], covers[place][:, 3:])
        columns.append(picture)
    return _sheet(titles, columns)


def mask_covers(views: Views, recipe: ViewRecipe) -> dict[int, Tensor]:
    """By place of the masked crops, [B, 4, h, w]: colour and opacity of what to lay over them to show the masks.

    Hidden patches are blue; those that I-JEPA's predictor is asked for have a colour for each of its blocks.
    """
    if not views.masks or recipe.masks is None:
        return {}
    students = [place for place, roles in enumerate(views.roles) if "student" in roles]
    size = views.crops[students[0]].shape[-2:]
    masked = [place for place in students if views.crops[place].shape[-2:] == size]
    height, width = recipe.masks.grid
    if "mask" in views.masks:
        cover = views.masks["mask"].flatten(0, 1)[:, :, None] * torch.tensor(_HIDDEN)
    else:
        context = views.masks["context"]
        cover = torch.tensor(_HIDDEN).repeat(len(context), height * width, 1)
        cover.scatter_(1, context[:, :, None].expand(-1, -1, 4), 0.0)
        for block, patches in enumerate(views.masks["targets"].unbind(1)):
            colour = torch.tensor(_BLOCKS[block % len(_BLOCKS)]).expand(*patches.shape, 4)
            cover.scatter_(1, patches[:, :, None].expand(-1, -1, 4), colour)
    grids = cover.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return dict(zip(masked, F.interpolate(grids, size=size).unflatten(0, (len(masked), -1)), strict=True))


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
