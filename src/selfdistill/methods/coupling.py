"""What couples the images of a batch, so that micro-batches whose gradients are added are not one large batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from selfdistill.distributed import world_size
from selfdistill.objectives import Coupling, Objective

if TYPE_CHECKING:
    from selfdistill.methods.base import SelfDistillModule


def couplings(module: SelfDistillModule[Any, Any], equal: Iterable[Coupling] = ()) -> dict[str, Coupling]:
    """The terms of ``module`` and its objectives that are no mean over images, and what couples these.

    Args:
        module: the method.
        equal: numbers that are the same in every micro-batch, and so couple nothing.
    """
    found = dict(module.couples())
    for name, objective in module.objectives.items():
        if isinstance(objective, Objective) and objective.couples is not None:
            found[name] = objective.couples
    return {name: why for name, why in found.items() if why not in set(equal)}


def over_all_images(
    module: SelfDistillModule[Any, Any],
    weights: dict[str, float],
    extra: Mapping[str, Iterable[str]],
    images: int,
    of_all: int,
) -> dict[str, float]:
    """Weights of the terms with which the mean of the processes' losses is that over all images.

    A term is a mean over the images of its process, unless it takes account of those of the others by itself.

    Args:
        module: the method.
        weights: of all terms.
        extra: names of the terms of each objective.
        images: of this process.
        of_all: of all processes.
    """
    share = images * world_size() / of_all
    if share == 1:
        return weights
    alike = set(module.over_ranks)
    for owner, objective in module.objectives.items():
        if isinstance(objective, Objective) and objective.over_ranks:
            alike.update(extra[owner])
    return {name: weight if name in alike else weight * share for name, weight in weights.items()}


def has_batch_norm(module: SelfDistillModule[Any, Any]) -> bool:
    """Whether networks see the statistics of a micro-batch."""
    return any(isinstance(part, _BatchNorm) and part.training for part in module.modules())


def equal_counts(loader: Any, batch_size: int, *, draws: int = 4) -> list[Coupling]:
    """Which numbers are the same in every micro-batch of ``batch_size`` images of ``loader``, as far as it shows them.

    The masks are drawn for a few batches, to see.
    """
    dataset = getattr(loader, "dataset", None)
    equal: list[Coupling] = []
    recipe = getattr(dataset, "recipe", None)
    if recipe is not None:
        index = torch.arange(batch_size)
        shapes = {
            tuple((name, tuple(mask.shape)) for name, mask in recipe.draw_masks(index, seed=0, epoch=epoch).items())
            for epoch in range(draws)
        }
        if len(shapes) == 1:
            equal.append("numbers of masked patches")
    images = getattr(dataset, "images", None) or getattr(dataset, "dataset", None)
    labels = getattr(images, "labels", None)
    if isinstance(labels, Tensor) and bool((labels >= 0).all()):
        equal.append("numbers of labelled images")
    return equal


def approximated(module: SelfDistillModule[Any, Any], accumulated: int, loader: Any) -> str | None:
    """One line on what a step over micro-batches only approximates; None where it is one large batch exactly.

    Args:
        module: the method.
        accumulated: micro-batches whose gradients are added.
        loader: of the training batches.
    """
    norm = has_batch_norm(module)
    if accumulated == 1:
        size = module.micro_batch_size
        return f"accumulate: exact, but batch norm sees micro-batches of {size} images" if size and norm else None
    sampler = getattr(loader, "sampler", None)
    batch_size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None) or 1
    terms = couplings(module, equal_counts(loader, batch_size))
    what = [f"{name} ({why})" for name, why in terms.items()] + (["batch norm"] if norm else [])
    if not what:
        return None
    mends = "accumulate=exact mends " + (("all but batch norm" if norm else "it") if terms else "not this")
    only = f"{accumulated} micro-batches a step only approximate one large batch in {', '.join(what)}"
    return f"accumulate: {only}; {mends}"
