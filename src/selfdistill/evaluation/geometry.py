"""Measures of features, of answers over prototypes, and of the teacher; pure, in float32 or better.

Each returns a 0-dim tensor on its input's device, so that nothing waits for it in the training loop.
Streaming forms are :class:`FeatureMoments` and :class:`PrototypeUsage`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from selfdistill.evaluation.features import unit_rows
from selfdistill.evaluation.moments import FeatureMoments, PrototypeEntropy, PrototypeUsage, cosine_of_sums
from selfdistill.evaluation.spectrum import effective_rank, narrow, rankme, require_matrix, widen
from selfdistill.evaluation.staleness import (
    AgeTracker,
    half_life,
    output_agreement,
    parameter_distance,
    steady_age,
)

__all__ = [
    "AgeTracker",
    "DivergenceParts",
    "FeatureMoments",
    "PrototypeEntropy",
    "PrototypeUsage",
    "alignment",
    "effective_rank",
    "feature_std",
    "half_life",
    "kl_and_entropy",
    "mean_cosine",
    "output_agreement",
    "parameter_distance",
    "prototype_entropy",
    "rankme",
    "steady_age",
    "uniformity",
]

# Rows of the distance matrix at a time: at 25,600 rows, 200 MiB in float64.
_ROWS = 1024


def feature_std(x: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of L2-normalised features, times √D.

    The collapse measure of SimSiam (arXiv 2011.10566, section 4.1), scaled so that 1 is isotropic whatever
    D, and 0 is one constant direction. Deviations divide by N: one row gives 0.

    Args:
        x: features ``[N, D]``.
    """
    require_matrix("x", x)
    unit = unit_rows(x)
    return unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5


def alignment(x: Tensor, y: Tensor, alpha: float = 2) -> Tensor:
    """Mean ‖x − y‖^alpha of L2-normalised positive pairs (arXiv 2005.10242); 0 is perfect.

    Args:
        x: ``[N, D]``; brought to length 1 here.
        y: ``[N, D]``, row i being the other view of row i of ``x``.
        alpha: exponent.
    """
    require_matrix("x", x)
    if x.shape != y.shape:
        raise ValueError(f"x is {tuple(x.shape)}, y {tuple(y.shape)}: pass the two views of the same images")
    return (unit_rows(x) - unit_rows(y)).norm(dim=1).pow(alpha).mean()


def uniformity(x: Tensor, t: float = 2) -> Tensor:
    """log of the mean over i < j of exp(−t ‖x_i − x_j‖²), L2-normalised (arXiv 2005.10242).

    Args:
        x: ``[N, D]``; brought to length 1 here.
        t: scale.

    Returns:
        0 for a constant vector and for a single row; the lower, the more evenly spread.
    """
    require_matrix("x", x)
    count = len(x)
    if count < 2:
        return x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
    unit = unit_rows(widen(x))
    square = unit.square().sum(1)
    column = torch.arange(count, device=unit.device)
    parts = []
    for start in range(0, count - 1, _ROWS):
        rows = slice(start, min(start + _ROWS, count - 1))
        distance = (square[rows, None] + square[start:] - 2 * unit[rows] @ unit[start:].T).clamp_min(0)
        later = column[rows, None] < column[start:]
        parts.append(torch.where(later, -t * distance, -torch.inf).flatten().logsumexp(0))
    pairs = count * (count - 1) / 2
    return narrow(torch.stack(parts).logsumexp(0) - math.log(pairs), x.dtype)


def mean_cosine(x: Tensor) -> Tensor:
    """Mean cosine over pairs i ≠ j of rows of ``x`` ``[N, D]``: 1 when collapsed, and for a single row."""
    require_matrix("x", x)
    unit = unit_rows(widen(x))
    return narrow(cosine_of_sums(unit.sum(0), unit.square().sum(), len(x)), x.dtype)


def prototype_entropy(x: Tensor, *, temperature: float = 1.0, probabilities: bool = False) -> PrototypeEntropy:
    """Entropy of the mean answer over prototypes, and mean entropy of an answer, in nats.

    Args:
        x: logits ``[…, K]``, or probabilities.
        temperature: logits are divided by it.
        probabilities: ``x`` holds probabilities, rows summing to 1.
    """
    if x.ndim == 0:
        raise ValueError("x must be […, K], got a scalar")
    usage = PrototypeUsage(x.shape[-1], x.device)
    return usage.update(x, temperature=temperature, probabilities=probabilities).entropy()


class DivergenceParts(NamedTuple):
    """Cross-entropy H(t, s) taken apart (0-dim tensors, nats): ``kl + entropy``.

    Attributes:
        kl: KL(teacher‖student): what the student can still learn.
        entropy: H(teacher): what no student can remove.
    """

    kl: Tensor
    entropy: Tensor


@torch.no_grad()
def kl_and_entropy(
    teacher: Tensor, student: Tensor, *, teacher_temperature: float = 1.0, student_temperature: float = 1.0
) -> DivergenceParts:
    """Mean KL(teacher‖student) and mean entropy of the teacher.

    Args:
        teacher: logits ``[…, K]``, after centering if there is any.
        student: logits ``[…, K]`` for the same images.
        teacher_temperature: divides the teacher's logits.
        student_temperature: divides the student's logits.
    """
    if teacher.shape != student.shape or teacher.numel() == 0:
        raise ValueError(
            f"teacher logits are {tuple(teacher.shape)}, student {tuple(student.shape)}: give those of "
            "the same images, not empty"
        )
    for name, value in (("teacher", teacher_temperature), ("student", student_temperature)):
        if not value > 0:
            raise ValueError(f"{name}_temperature={value}: give a number above 0")
    wide = torch.promote_types(teacher.dtype, torch.float32)
    log_t = (teacher.to(wide) / teacher_temperature).log_softmax(-1)
    log_s = (student.to(wide) / student_temperature).log_softmax(-1)
    p = log_t.exp()
    # A prototype that the teacher rules out adds 0, also where its log is −inf.
    kl = torch.where(p > 0, p * (log_t - log_s), 0.0).sum(-1).mean()
    return DivergenceParts(kl.clamp_min(0), torch.special.entr(p).sum(-1).mean())
