"""What a method hands over: to its loss, to objectives and to monitors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from selfdistill.views.micro_batches import Layout


@dataclass
class Outputs:
    """What one side of a method computed; methods with more to hand over extend it.

    Attributes:
        projections: ``[V, B, P]``, what the loss compares (one tensor a head for several heads).
        features: ``[V, B, D]`` pooled backbone features, for monitors and objectives.
        pairs: (student slot, teacher slot) to compare; on the student's side only.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {}
    """How the samples of a field lie where that is not ``[V, B, …]``."""

    projections: Tensor
    features: Tensor
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass
class Answers:
    """What both sides say about images over K prototypes, as logits at the temperatures of the loss; for monitors.

    Attributes:
        student: ``[V, B, K]``.
        teacher: ``[G, B, K]``, whose softmax is the target.
        pairs: (student slot, teacher slot) that the loss compares.
    """

    student: Tensor
    teacher: Tensor
    pairs: tuple[tuple[int, int], ...] = ()


def as_logits(probabilities: Tensor) -> Tensor:
    """Their logarithm, which stays a number where one of them underflowed."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def detached(value: Any) -> Any:
    """``value`` without graph: step outputs reach callbacks and would keep it alive."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Outputs):
        fields = {name: detached(item) for name, item in vars(value).items()}
        return type(value)(**fields)
    if isinstance(value, list | tuple):
        return [detached(item) for item in value]
    return value
