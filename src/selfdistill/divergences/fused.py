"""The cross-entropy of DINO-like methods over many prototypes, without the memory of the plain version.

Shapes: V student crops, G teacher crops, B rows (images or tokens), C rows of a chunk, K prototypes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfdistill.divergences.functional import check_positive

__all__ = ["fused_cross_entropy"]

# Logits of a chunk: on a CPU what a core's cache holds, per thread; elsewhere enough to hide kernel launches.
_CPU_CHUNK = 2**17
_DEVICE_CHUNK = 2**23

Groups = list[tuple[list[int], list[int]]]  # not a mapping: the profiler writes arguments of functions down


# Traced, the loop over chunks would be unrolled.
@torch.compiler.disable
def fused_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float | None,
    pairs: Sequence[tuple[int, int]] | None = None,
    weight: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Mean over pairs of crops of the batch-mean cross-entropy: DINO's loss (arXiv 2104.14294, eq. 3).

    mean over pairs (v, g) and rows b of  −Σ_k p_gbk log softmax(s_vb / τ_s)_k,  p_gb = softmax(t_gb / τ_t)

    Exact in value and gradient. Teachers of the same student crop are summed first, so each student row is
    visited once; its gradient is made while its probabilities exist, and backward only scales it. Beyond the
    arguments this takes the student's gradient and a few chunks of rows: no log-softmax is kept. The gradient
    has the student's dtype, except that for fp16 it is float32 until scaled: probabilities divided by the
    batch size would underflow before the loss scaler's factor arrives.

    The teacher gets no gradient. There is no second derivative: backward with create_graph=True is an
    error. Autocast has no effect, and `torch.compile` leaves it as it is.

    Args:
        student: [V, B, K] logits.
        teacher: [G, B, K] logits after centering, or probabilities: see `teacher_temperature`.
        student_temperature: > 0. DINO uses .1.
        teacher_temperature: > 0, or None where `teacher` holds probabilities, such as Sinkhorn codes. Rows
            need not sum to 1: one of zeros adds nothing to the sum and still counts in the mean.
        pairs: (student crop, teacher crop) of each term; a pair given twice counts twice. By default all of
            different index, teacher crop g being student crop g.
        weight: [B] of the rows, which the mean is still divided by the number of; 1 each by default.
        chunk_rows: Rows worked on at a time, by default chosen from K and the device. Decides speed and
            memory only.

    Returns:
        Scalar, in float32 (float64 if an input is).

    Raises:
        ValueError: An argument has the wrong shape or is out of range.
        RuntimeError: In a backward with create_graph=True.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:] or 0 in student.shape:
        raise ValueError(
            "student must have shape [crops, rows, prototypes], none 0, and teacher the same rows and "
            f"prototypes, got {list(student.shape)} and {list(teacher.shape)}"
        )
    check_positive("student_temperature", student_temperature)
    if teacher_temperature is not None:
        check_positive("teacher_temperature", teacher_temperature)
    if chunk_rows is None:
        budget = _CPU_CHUNK * torch.get_num_threads() if student.device.type == "cpu" else _DEVICE_CHUNK
        chunk_rows = max(1, budget // student.shape[2])
    elif chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    if weight is not None and weight.shape != student.shape[1:2]:
        raise ValueError(f"weight must have one number a row, {student.shape[1]}, got shape {list(weight.shape)}")
    groups = students_by_teachers(len(student), len(teacher), pairs)

    arguments = (student, teacher, weight, student_temperature, teacher_temperature, groups, chunk_rows)
    if torch.is_grad_enabled() and student.requires_grad:
        loss: Tensor = _FusedCrossEntropy.apply(*arguments)
        return loss
    return _loss_and_gradient(*arguments, with_gradient=False)[0]


def students_by_teachers(crops: int, teachers: int, pairs: Sequence[tuple[int, int]] | None) -> Groups:
    """For each combination of teacher crops: these, and the student crops compared with exactly them."""
    if pairs is None:
        pairs = [(v, g) for v in range(crops) for g in range(teachers) if v != g]
    if not pairs:
        raise ValueError(
            f"pairs must hold at least one (student, teacher), got none for {crops} student and {teachers} "
            "teacher crops; give more crops, or pairs=[(0, 0)] to compare a crop with itself"
        )
    for v, g in pairs:
        if not (0 <= v < crops and 0 <= g < teachers):
            raise ValueError(f"pairs must be (student < {crops}, teacher < {teachers}), none negative, got {(v, g)}")
    groups: dict[tuple[int, ...], list[int]] = {}
    for v in sorted({v for v, _ in pairs}):
        groups.setdefault(tuple(sorted(g for s, g in pairs if s == v)), []).append(v)
    return [(list(compared), students) for compared, students in groups.items()]


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, *arguments: Any) -> Tensor:
        loss, gradient = _loss_and_gradient(student, *arguments, with_gradient=True)
        ctx.dtype = student.dtype
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` would let create_graph=True pass and give second derivatives of zero.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fused_cross_entropy cannot be differentiated twice; drop create_graph=True or use cross_entropy"
            )
        (gradient,) = ctx.saved_tensors
        # Needed again with retain_graph=True; otherwise a second tensor of this size would raise the peak.
        retained = torch._C._autograd._get_current_graph_task_keep_graph()
        reuse = gradient.dtype == ctx.dtype and not retained
        scaled = gradient if reuse else torch.empty_like(gradient, dtype=ctx.dtype)
        # With dimensions the scale takes part in type promotion; without, a GPU would round it to bf16 first.
        torch.mul(gradient, scale.view(1, 1, 1), out=scaled)
        return scaled, *[None] * 6


@torch.no_grad()
def _loss_and_gradient(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    student_temperature: float,
    teacher_temperature: float | None,
    groups: Groups,
    chunk_rows: int,
    *,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    V, B, K = student.shape
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    terms = B * sum(len(teachers) * len(students) for teachers, students in groups)
    factor = 1 / (student_temperature * terms)
    total = torch.zeros((), dtype=dtype, device=student.device)
    x_chunk, q_chunk = torch.empty((2, min(chunk_rows, B), K), dtype=dtype, device=student.device)
    gradient = None
    if with_gradient:
        stored = torch.float32 if student.dtype == torch.float16 else student.dtype
        gradient = torch.empty((V, B, K), dtype=stored, device=student.device)
        for v in set(range(V)).difference(*(students for _, students in groups)):
            gradient[v].zero_()

    with torch.autocast(student.device.type, enabled=False):
        for start in range(0, B, chunk_rows):
            rows = slice(start, start + chunk_rows)
            p_GCK = teacher[:, rows].to(dtype)
            if teacher_temperature is not None:
                p_GCK = torch.softmax(p_GCK / teacher_temperature, dim=-1)
            if weight is not None:
                p_GCK = p_GCK * weight[rows, None]
            for teachers, students in groups:
                target_CK = sum((p_GCK[g] for g in teachers[1:]), start=p_GCK[teachers[0]])
                mass_C1 = target_CK.sum(-1, keepdim=True)
                pull_CK = target_CK * -factor
                for v in students:
                    s_CK = student[v, rows]
                    x_CK, q_CK = x_chunk[: len(s_CK)], q_chunk[: len(s_CK)]
                    if gradient is not None and gradient.dtype == dtype:
                        q_CK = gradient[v, rows]
                    torch.sub(s_CK, s_CK.amax(-1, keepdim=True).to(dtype), out=x_CK).div_(student_temperature)
                    torch.softmax(x_CK, dim=-1, out=q_CK)
                    # x is 0 at its largest, so the log of the largest q is minus the log-sum-exp of x.
                    total -= torch.sum(mass_C1 * q_CK.amax(-1, keepdim=True).log())
                    total -= x_CK.mul_(target_CK).sum()
                    if gradient is not None:
                        torch.addcmul(pull_CK, q_CK, mass_C1, value=factor, out=q_CK)
                        if gradient.dtype != dtype:
                            gradient[v, rows] = q_CK
    return total / terms, gradient
