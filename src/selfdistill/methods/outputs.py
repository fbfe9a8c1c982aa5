"""What a method hands over: to its loss, to objectives and to monitors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Outputs:
    """What one side of a method computed; methods with more to hand over extend it.

    Attributes:
        projections: ``[V, B, P]``, what the loss compares (one tensor a head for several heads).
        features: ``[V, B, D]`` pooled backbone features, for monitors and objectives.
        pairs: (student slot, teacher slot) to compare; on the student's side only.
    """

    projections: Tensor
    features: Tensor
    pairs: tuple[tuple[int, int], ...] = ()


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
