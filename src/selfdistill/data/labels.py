"""A part of the labels, for semi-supervised training."""

from __future__ import annotations

import torch
from torch import Tensor

from selfdistill.data.sources import rank_in_class

__all__ = ["check_labelled", "labelled_part"]

# One number for ever: runs of different seeds learn from the same labels.
_SEED = 0


def check_labelled(given: float | None) -> None:
    """Refuse what is no share and no number of images.

    Raises:
        ValueError: not in (0, 1] where it is a float, not 1 or more where it is an int.
    """
    if given is None:
        return
    whole = isinstance(given, int) and not isinstance(given, bool)
    if not (given >= 1 if whole else isinstance(given, float) and 0 < given <= 1):
        raise ValueError(
            f"data.labelled: {given!r} given, allowed is a share above 0.0 and up to 1.0, a whole number of images a "
            "class, or null for all"
        )


def labelled_part(labels: Tensor, given: float | None) -> Tensor:
    """``labels`` [N] with -1 for all but some of each class.

    Which ones depends on the labels alone, on no seed, and a smaller part is within every larger one.

    Args:
        labels: int64, -1 for none.
        given: a share (float) of each class, rounded and at least one image; a number (int) of images a class,
            of which a smaller class has all; None for all.
    """
    if given is None:
        return labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SEED))
    place = torch.empty_like(order)
    place[order] = rank_in_class(labels[order])
    classes, counts = labels.unique(return_counts=True)
    wanted = torch.full_like(counts, given) if isinstance(given, int) else (counts * given).round().long().clamp_min(1)
    return torch.where(place < wanted[torch.searchsorted(classes, labels)], labels, -1)
