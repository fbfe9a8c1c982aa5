"""How far and how old a teacher is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.evaluation.features import unit_rows
from selfdistill.sharding import local, norms

# Tensors a fused call: differences of at most these exist at once, not of a whole model.
_GROUP = 64


@torch.no_grad()
def parameter_distance(teacher: Iterable[Tensor], student: Iterable[Tensor]) -> Tensor:
    """Relative distance ‖t − s‖ / ‖s‖ of two networks' parameters, all taken as one vector.

    Of one network at two times it is the drift between them.

    Args:
        teacher: parameters, in the student's order.
        student: parameters.

    Returns:
        A float32 scalar ≥ 0.

    Raises:
        ValueError: no parameters, or lists that differ in length or shapes.
    """
    t, s = _floats(teacher), _floats(student)
    if not s or len(t) != len(s):
        raise ValueError(f"teacher has {len(t)} parameters, student {len(s)}: give equal lists, not empty")
    for i, (a, b) in enumerate(zip(t, s, strict=True)):
        if a.shape != b.shape:
            raise ValueError(
                f"parameter {i} is {tuple(a.shape)} in the teacher, {tuple(b.shape)} in the student: "
                "give networks of one structure"
            )
    difference: list[Tensor] = []
    size: list[Tensor] = []
    for i in range(0, len(s), _GROUP):
        some = s[i : i + _GROUP]
        own = [local(parameter) for parameter in some]
        changes = torch._foreach_sub([local(parameter) for parameter in t[i : i + _GROUP]], own)
        difference.append(norms(some, held=changes))
        size.append(norms(some))
    reference = torch.linalg.vector_norm(torch.cat(size)).clamp_min(torch.finfo(torch.float32).tiny)
    return (torch.linalg.vector_norm(torch.cat(difference)) / reference).float()


def output_agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine between the two networks' outputs ``[…, D]`` for the same inputs; zero rows count as 0."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student outputs are {tuple(student.shape)}, teacher outputs {tuple(teacher.shape)}: pass those "
            "for the same inputs"
        )
    return (unit_rows(student) * unit_rows(teacher)).sum(-1).mean()


def half_life(momentum: float) -> float:
    """Updates after which a student's share in an EMA teacher has halved, ln .5 / ln m: 0 at 0, ∞ at 1."""
    _check(momentum)
    if momentum in (0.0, 1.0):
        return math.inf if momentum else 0.0
    return math.log(0.5) / math.log(momentum)


def steady_age(momentum: float) -> float:
    """Mean age m / (1 − m), in updates, that an EMA teacher of constant momentum settles at; ∞ at 1."""
    _check(momentum)
    return momentum / (1 - momentum) if momentum < 1 else math.inf


@dataclass
class AgeTracker:
    """Mean age of a teacher in optimizer steps, from the momentum sequence that it really had.

    The teacher is a mean of past students. An update ages all of them by a step and gives the newest, of
    age 0, the share 1 − m: a ← m (a + 1). A snapshot (m = 0) is fresh, a frozen teacher (m = 1) ages by a
    step every step. ``dataclasses.asdict`` is its checkpoint.

    Attributes:
        age: mean age in steps; 0 for a copy of the student.
        half_life: that of the last momentum, see :func:`half_life`.
    """

    age: float = 0.0
    half_life: float = 0.0

    def update(self, momentum: float) -> float:
        """Account for one update; returns the new age."""
        self.half_life = half_life(momentum)
        self.age = momentum * (self.age + 1)
        return self.age


def _check(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum}: give a number in [0, 1]")


def _floats(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in parameters]
