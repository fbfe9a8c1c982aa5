"""The views that the networks see of some images, masks drawn in."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.data import DataModule
from selfdistill.views import ViewRecipe, Views

# Red, green, blue and opacity of what is laid over a hidden patch, and over those of each block to predict.
_HIDDEN = (0.25, 0.35, 0.65, 0.85)
_BLOCKS = ((0.90, 0.62, 0.0, 0.6), (0.34, 0.71, 0.91, 0.6), (0.0, 0.62, 0.45, 0.6), (0.80, 0.47, 0.65, 0.6))


def first_views(datamodule: DataModule, images: int) -> tuple[list[str], list[Tensor]]:
    """The first training images of the first epoch as they are stored, and every view of them, as training drew it.

    Masks are drawn for these images alone, while training shares them out over a whole batch. The data module's own
    loader, its counters and the random state stay as they are.

    Returns:
        A title for each column, "stored" first, of two lines: size and who sees it; and the columns, ``[images, C, h,
        w]`` in [0, 1] each.
    """
    apart = copy.copy(datamodule)
    apart.batch_size, apart.num_workers, apart.trainer = images, 0, None
    views: Views = apart.on_after_batch_transfer(next(iter(apart.train_dataloader())), 0)
    assert views.index is not None
    titles, columns = ["stored"], [datamodule.whole_images(views.index)]
    mean, std = (torch.tensor(values)[:, None, None] for values in (datamodule.source.mean, datamodule.source.std))
    covers = mask_covers(views, datamodule.recipe)
    largest = max(crop.shape[-1] for crop in views.crops)
    for place, (crop, roles) in enumerate(zip(views.crops, views.roles, strict=True)):
        side = crop.shape[-1]
        titles.append(f"{'global' if side == largest else 'local'} {side}x{side}\n{' + '.join(sorted(roles))}")
        picture = (crop * std + mean).clamp(0, 1)
        if place in covers:
            picture = picture.expand(-1, 3, -1, -1).lerp(covers[place][:, :3], covers[place][:, 3:])
        columns.append(picture)
    return titles, columns


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
