"""Divergences between a student and a teacher, one number a sample.

Every function takes two tensors of the same shape ``[..., D]`` and returns ``[...]``: no mean over samples.
Computed in float32 (float64 inputs stay float64) with autocast off, and finite in value and in gradient for
half-precision inputs up to 1e4 at temperatures down to .02. Gradients flow to both arguments: where the
teacher should get none, the caller detaches it. Written to fp16 inputs, a gradient beyond 65504 becomes inf,
as a loss scaler expects.

s: student; t: teacher; p_s, p_t: their softmax over the last dimension at their own temperatures.
"""

import functools
import math
from collections.abc import Callable
from typing import Concatenate, Literal, ParamSpec, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Direction", "cosine", "cross_entropy", "js", "kl", "l2", "l2_normalized", "smooth_l1"]

Direction = Literal["student_teacher", "teacher_student"]

_Options = ParamSpec("_Options")
_PerSample = Callable[Concatenate[Tensor, Tensor, _Options], Tensor]

# Floor of a squared norm, as in BYOL's code: on the norm itself 1e-12 would vanish in its square.
_MIN_SQUARED_NORM = 1e-12


def as_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in their common dtype, at least float32.

    Raises:
        ValueError: They differ in shape (nothing is broadcast), or have no features.
    """
    if student.shape != teacher.shape or student.ndim == 0 or student.shape[-1] == 0:
        raise ValueError(
            "student and teacher must have one shape [..., features >= 1], "
            f"got {list(student.shape)} and {list(teacher.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.to(dtype)


def _full_precision(divergence: _PerSample[_Options]) -> _PerSample[_Options]:
    @functools.wraps(divergence)
    def checked(student: Tensor, teacher: Tensor, *args: _Options.args, **kwargs: _Options.kwargs) -> Tensor:
        student, teacher = as_pair(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            return divergence(student, teacher, *args, **kwargs)

    return checked


@_full_precision
def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Euclidean distance ‖s − t‖², summed over features.

    Raises:
        ValueError: The shapes differ.
    """
    return (student - teacher).square().sum(-1)


@_full_precision
def l2_normalized(student: Tensor, teacher: Tensor) -> Tensor:
    """BYOL's loss of one direction (arXiv 2006.07733, eq. 2): ‖s/‖s‖ − t/‖t‖‖² = 2 − 2 cos(s, t), in [0, 4].

    Taken as the squared distance, which unlike 2 − 2 cos neither cancels nor turns negative near 0. Vectors
    shorter than 1e-6 are divided by 1e-6, so that a zero vector has a distance of 1 to any direction.

    Raises:
        ValueError: The shapes differ.
    """
    return (_unit(student) - _unit(teacher)).square().sum(-1)


@_full_precision
def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(s, t), in [0, 2]: half of `l2_normalized`, and SimSiam's loss (arXiv 2011.10566, eq. 1) plus 1.

    The cosine with a zero vector is 0.

    Raises:
        ValueError: The shapes differ.
    """
    return 1 - (_unit(student) * _unit(teacher)).sum(-1)


@_full_precision
def smooth_l1(student: Tensor, teacher: Tensor, *, beta: float = 1.0) -> Tensor:
    """Smooth L1 with threshold β, averaged over features as I-JEPA's code does (arXiv 2301.08243; β = 1).

    ½ d²/β where |d| < β, else |d| − ½ β, with d = s − t. data2vec (arXiv 2202.03555) takes β = 2 for images.

    Args:
        student: [..., D].
        teacher: [..., D].
        beta: Where the quadratic part ends, in units of the features, > 0.

    Raises:
        ValueError: The shapes differ, or beta is out of range.
    """
    check_positive("beta", beta)
    return F.smooth_l1_loss(student, teacher, beta=beta, reduction="none").mean(-1)


@_full_precision
def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    direction: Direction = "student_teacher",
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Kullback-Leibler divergence in nats, not multiplied by a squared temperature.

    KL(p‖q) = Σ_k p_k (log p_k − log q_k), p_s = softmax(s / student_temperature), p_t alike.
    At a large common temperature T, T² KL tends to ‖s̄ − t̄‖² / 2K, where s̄ and t̄ have their mean over the K
    entries removed (Hinton et al., arXiv 1503.02531, §2.1): multiply by T² to compare temperatures.

    Args:
        student: [..., K] logits, or features, taken as logits over their dimensions.
        teacher: [..., K].
        direction: "student_teacher" is KL(p_s‖p_t); "teacher_student" is KL(p_t‖p_s), the usual distillation
            loss: `cross_entropy` less the teacher's entropy.
        student_temperature: > 0.
        teacher_temperature: > 0.

    Raises:
        ValueError: The shapes differ, a temperature is out of range, or the direction is unknown.
    """
    check_direction(direction)
    log_ps = _log_softmax("student_temperature", student, student_temperature)
    log_pt = _log_softmax("teacher_temperature", teacher, teacher_temperature)
    return _kl(log_ps, log_pt) if direction == "student_teacher" else _kl(log_pt, log_ps)


@_full_precision
def js(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Jensen-Shannon divergence in nats, in [0, ln 2] (Lin 1991, doi:10.1109/18.61115).

    ½ KL(p_s‖m) + ½ KL(p_t‖m) with m = ½ (p_s + p_t). The mixture is made of logarithms, so where both
    probabilities underflow it stays finite.

    Args:
        student: [..., K] logits, or features, taken as logits over their dimensions.
        teacher: [..., K].
        student_temperature: > 0.
        teacher_temperature: > 0.

    Raises:
        ValueError: The shapes differ, or a temperature is out of range.
    """
    log_ps = _log_softmax("student_temperature", student, student_temperature)
    log_pt = _log_softmax("teacher_temperature", teacher, teacher_temperature)
    log_m = torch.logaddexp(log_ps, log_pt) - math.log(2)
    return (_kl(log_ps, log_m) + _kl(log_pt, log_m)) / 2


@_full_precision
def cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """−Σ_k p_t,k log p_s,k in nats: KL(p_t‖p_s) plus the teacher's entropy. DINO (arXiv 2104.14294, eq. 2).

    ln K for a uniform student, whatever the teacher. `fused_cross_entropy` is for many prototypes and crops.

    Args:
        student: [..., K] logits, or features, taken as logits over their dimensions.
        teacher: [..., K] logits, centered if they are to be.
        student_temperature: > 0. DINO uses .1.
        teacher_temperature: > 0. DINO uses .04, rising to .07 where stable.

    Raises:
        ValueError: The shapes differ, or a temperature is out of range.
    """
    log_ps = _log_softmax("student_temperature", student, student_temperature)
    log_pt = _log_softmax("teacher_temperature", teacher, teacher_temperature)
    return -(log_pt.exp() * log_ps).sum(-1)


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError that names the argument unless `value` is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_direction(direction: str) -> None:
    """Raise a ValueError unless `direction` is one that `kl` knows."""
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")


def _unit(x: Tensor) -> Tensor:
    return x * x.square().sum(-1, keepdim=True).clamp_min(_MIN_SQUARED_NORM).rsqrt()


def _log_softmax(name: str, logits: Tensor, temperature: float) -> Tensor:
    check_positive(name, temperature)
    return F.log_softmax(logits / temperature, dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
