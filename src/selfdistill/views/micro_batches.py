"""A batch of views computed in micro-batches, with one loss over all of it.

Shapes: V crops, B images, G masked crops, M masked patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfdistill.views.views import Views

R = TypeVar("R")
Layout = Literal["crops", "images", "masked"]
"""How the samples of a tensor lie: ``crops`` is [V, B, …], ``images`` is [V·B, …], ``masked`` is [M, …] in the order
of ``Views.masks["masked"]``."""


@dataclass
class MicroBatch:
    """Some consecutive images of a batch.

    Attributes:
        views: theirs alone, as a loader would have made them.
        masked: [m] which of the whole batch's M masked patches are theirs. Without any, ``views`` has one that stands
            for none, as a batch without masks has.
    """

    views: Views
    masked: Tensor


def in_micro_batches(run: Callable[[Views], R], views: Views, size: int | None, layout: Layout = "crops") -> R:
    """``run(views)``, with the activations of ``size`` images at a time (GradCache, arXiv 2101.06983).

    Forward, only outputs are kept. Backward, each micro-batch is run again, with the same random numbers, once the
    gradient of its outputs is known: so the loss may couple all images, and the gradient is that of one batch.

    Args:
        run: gives a tensor, None, or a dataclass whose ``layouts`` says of each field how its samples lie (``crops``
            where it does not); networks in it must not look beyond an image.
        views: the whole batch.
        size: images a micro-batch; None, or as many as there are, is ``run(views)``.
        layout: how the samples of a tensor lie that ``run`` gives.
    """
    if size is None or size >= views.batch_size:
        return run(views)
    parts = micro_batches(views, size)
    if not torch.is_grad_enabled():
        return _joined([run(part.views) for part in parts], parts, layout)

    def again(on_device: Tensor, part: MicroBatch) -> R:
        return run(part.views)

    # the tensor tells whose random state is to be kept
    computed = [checkpoint(again, part.views.crops[0], part, use_reentrant=False) for part in parts]
    return _joined(computed, parts, layout)


def micro_batches(views: Views, size: int) -> list[MicroBatch]:
    """``views`` in micro-batches of ``size`` images, the last one of what remains.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"micro_batch_size: {size} given, allowed is 1 or more images")
    images = _masked_images(views)
    starts = range(0, views.batch_size, size)
    return [_part(views, images, start, min(start + size, views.batch_size)) for start in starts]


def _masked_images(views: Views) -> Tensor:
    """[M] the image of each masked patch, on the CPU: one wait for the device, not one for each micro-batch."""
    if "masked" not in views.masks:
        return torch.empty(0, dtype=torch.int64)
    if (count := views.mask("masked")).is_meta:
        # only shapes count there: as many of each image
        return torch.arange(len(count)) * views.batch_size // len(count)
    patches = views.mask("mask").shape[-1]
    return (views.mask("masked") // patches % views.batch_size).cpu()


def join(tensors: Sequence[Tensor], parts: Sequence[MicroBatch], layout: Layout) -> Tensor:
    """What was computed of each of ``parts``, in the order of the whole batch; differentiable.

    Raises:
        ValueError: a tensor that does not lie as ``layout`` says.
    """
    for tensor, part in zip(tensors, parts, strict=True):
        _check(tensor, part, layout)
    if layout == "crops":
        return torch.cat(list(tensors), dim=1)
    if layout == "images":
        crops = [t.unflatten(0, (-1, part.views.batch_size)) for t, part in zip(tensors, parts, strict=True)]
        return torch.cat(crops, dim=1).flatten(0, 1)
    own = [tensor[: len(part.masked)] for tensor, part in zip(tensors, parts, strict=True)]
    return torch.cat(own).index_select(0, torch.cat([part.masked for part in parts]).argsort())


def _joined(values: Sequence[Any], parts: Sequence[MicroBatch], layout: Layout) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return join(values, parts, layout)
    if is_dataclass(first) and not isinstance(first, type):
        layouts = getattr(first, "layouts", {})
        return type(first)(
            **{
                field.name: _joined(
                    [getattr(value, field.name) for value in values], parts, layouts.get(field.name, "crops")
                )
                for field in fields(first)
            }
        )
    if isinstance(first, list | tuple) and any(isinstance(item, Tensor) for item in first):
        return type(first)(_joined(items, parts, layout) for items in zip(*values, strict=True))
    return first


def _check(tensor: Tensor, part: MicroBatch, layout: Layout) -> None:
    images = part.views.batch_size
    if layout == "crops":
        fits = tensor.ndim > 1 and tensor.shape[1] == images
    elif layout == "images":
        fits = tensor.ndim > 0 and len(tensor) % images == 0
    else:
        fits = tensor.ndim > 0 and len(tensor) == max(len(part.masked), 1)
    if not fits:
        raise ValueError(
            f"micro_batch_size: a tensor {list(tensor.shape)} of {images} images given, which does not lie as "
            f"{layout!r} says; declare how it does in `layouts` of the method's outputs"
        )


def _part(views: Views, masked_images: Tensor, start: int, stop: int) -> MicroBatch:
    batch, images = views.batch_size, stop - start
    masks: dict[str, Tensor] = {}
    mine = torch.empty(0, dtype=torch.int64)
    for name, mask in views.masks.items():
        if name == "mask":
            masks[name] = mask[:, start:stop]
        elif name not in ("masked", "masked_weight"):
            masks[name] = mask.unflatten(0, (-1, batch))[:, start:stop].flatten(0, 1)
    if "masked" in views.masks:
        whole, weight = views.mask("masked"), views.mask("masked_weight")
        patches = views.mask("mask").shape[-1]
        crop, image = whole // (batch * patches), whole // patches % batch
        mine = ((masked_images >= start) & (masked_images < stop)).nonzero()[:, 0].to(whole.device)
        moved = (crop * images + image - start) * patches + whole % patches
        # none is masked here: the first patch with weight 0, as `draw_masks` has it
        masks["masked"] = moved[mine] if len(mine) else whole.new_zeros(1)
        masks["masked_weight"] = weight[mine] if len(mine) else weight.new_zeros(1)
    return MicroBatch(
        Views(
            crops=[crop[start:stop] for crop in views.crops],
            roles=views.roles,
            masks=masks,
            labels=None if views.labels is None else views.labels[start:stop],
            index=None if views.index is None else views.index[start:stop],
        ),
        mine,
    )
