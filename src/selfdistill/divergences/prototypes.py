"""Head and loss of DINO-like methods in one, so that the student's logits are never all in memory.

Shapes: V student crops, G teacher crops, B rows (images or tokens), C rows of a chunk, K prototypes, P features;
N = rows of all crops of a chunk that are compared with the same teachers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfdistill.divergences.functional import check_positive
from selfdistill.divergences.fused import Groups, students_by_teachers
from selfdistill.products import row_products

__all__ = ["prototype_cross_entropy"]

# Logits of a chunk: enough rows for quick products.
_CPU_CHUNK = 2**22
_DEVICE_CHUNK = 2**26


# Traced, the loop over chunks would be unrolled.
@torch.compiler.disable
def prototype_cross_entropy(
    features: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float | None,
    normalize: bool = False,
    pairs: Sequence[tuple[int, int]] | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """`fused_cross_entropy` of the logits ``features @ prototypes.T``, which exist a chunk of rows at a time.

    Exact in value and gradient. What is added to the arguments is the gradient of the features, that of the
    prototypes and a chunk of logits: B and V no longer multiply K. Both gradients are gathered while the chunk
    exists, so that no product is made twice.

    The teacher gets no gradient. There is no second derivative: backward with create_graph=True is an error.

    Args:
        features: [V, B, P].
        prototypes: [K, P].
        teacher: [G, B, K] logits after centering, or probabilities: see `teacher_temperature`.
        student_temperature: > 0.
        teacher_temperature: > 0, or None where `teacher` holds probabilities.
        normalize: divide each prototype by its length, as `heads.Prototypes` does, without a second [K, P].
        pairs: (student crop, teacher crop) of each term; by default all of different index.
        chunk_rows: Rows of a crop worked on at a time, by default chosen from K and the device. Decides speed and
            memory only.

    Returns:
        Scalar, in float32 (float64 if an input is).

    Raises:
        ValueError: An argument has the wrong shape or is out of range.
        RuntimeError: In a backward with create_graph=True.
    """
    if (
        features.ndim != 3 or prototypes.ndim != 2 or teacher.ndim != 3 or 0 in features.shape
        or features.shape[2] != prototypes.shape[1] or teacher.shape[1:] != (features.shape[1], len(prototypes))
    ):  # fmt: skip
        raise ValueError(
            "features must have shape [crops, rows, P], prototypes [K, P] and teacher [crops, rows, K], "
            f"got {list(features.shape)}, {list(prototypes.shape)} and {list(teacher.shape)}"
        )
    check_positive("student_temperature", student_temperature)
    if teacher_temperature is not None:
        check_positive("teacher_temperature", teacher_temperature)
    if chunk_rows is None:
        budget = _CPU_CHUNK if features.device.type == "cpu" else _DEVICE_CHUNK
        chunk_rows = max(1, budget // (len(prototypes) * len(features)))
    elif chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    groups = students_by_teachers(len(features), len(teacher), pairs)
    loss: Tensor = _PrototypeCrossEntropy.apply(
        features, prototypes, teacher, student_temperature, teacher_temperature, normalize, groups, chunk_rows
    )
    return loss


class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor, teacher: Tensor, *settings: Any) -> Tensor:
        loss, of_features, of_prototypes = _loss_and_gradients(features, prototypes, teacher, *settings)
        ctx.dtypes = features.dtype, prototypes.dtype
        ctx.save_for_backward(of_features, of_prototypes)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` would let create_graph=True pass and give second derivatives of zero.
        if torch.is_grad_enabled():
            raise RuntimeError("prototype_cross_entropy cannot be differentiated twice; drop create_graph=True")
        # Needed again with retain_graph=True; otherwise a second [K, P] would raise the peak.
        retained = torch._C._autograd._get_current_graph_task_keep_graph()
        scaled = [g * scale if retained else g.mul_(scale) for g in ctx.saved_tensors]
        of_features, of_prototypes = (g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True))
        return of_features, of_prototypes, *[None] * 6


@torch.no_grad()
def _loss_and_gradients(
    features: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    student_temperature: float,
    teacher_temperature: float | None,
    normalize: bool,
    groups: Groups,
    chunk_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    B, K = features.shape[1], len(prototypes)
    dtype = torch.promote_types(torch.promote_types(features.dtype, teacher.dtype), torch.float32)
    terms = B * sum(len(teachers) * len(students) for teachers, students in groups)
    factor = 1 / (student_temperature * terms)
    total = torch.zeros((), dtype=dtype, device=features.device)
    w_KP = prototypes.to(dtype)
    # Logits are scaled instead of prototypes. The least length is that of `heads.Prototypes`.
    length_K = torch.linalg.vector_norm(w_KP, dim=1) if normalize else w_KP.new_ones(K)
    shrink_K = length_K.clamp_min(1e-6).reciprocal()
    of_features = torch.zeros(features.shape, dtype=dtype, device=features.device)
    of_prototypes = torch.zeros_like(w_KP)
    with torch.autocast(features.device.type, enabled=False):
        for start in range(0, B, chunk_rows):
            rows = slice(start, start + chunk_rows)
            p_GCK = teacher[:, rows].to(dtype)
            if teacher_temperature is not None:
                p_GCK = torch.softmax(p_GCK / teacher_temperature, dim=-1)
            for teachers, students in groups:
                target_CK = sum((p_GCK[g] for g in teachers[1:]), start=p_GCK[teachers[0]])
                mass_C1 = target_CK.sum(-1, keepdim=True)
                z_NP = features[students, rows].to(dtype).flatten(0, 1)
                x_NK = row_products(z_NP, w_KP).mul_(shrink_K)
                x_NK.sub_(x_NK.amax(-1, keepdim=True)).div_(student_temperature)
                q_NK = torch.softmax(x_NK, dim=-1)
                # x is 0 at its largest, so the log of the largest q is minus the log-sum-exp of x.
                total -= (q_NK.amax(-1).log().view(len(students), -1) * mass_C1[:, 0]).sum()
                for x_CK, q_CK in zip(x_NK.chunk(len(students)), q_NK.chunk(len(students)), strict=True):
                    total -= x_CK.mul_(target_CK).sum()
                    q_CK.mul_(mass_C1).sub_(target_CK)
                q_NK.mul_(shrink_K * factor)
                of_features[students, rows] = (q_NK @ w_KP).view(len(students), -1, w_KP.shape[1])
                of_prototypes.addmm_(q_NK.T, z_NP)
        if normalize:
            # What lengthens a prototype changes nothing, unless it is so short that it is not normalised.
            along_K = torch.einsum("kp,kp->k", of_prototypes, w_KP) * shrink_K.square() * (length_K > 1e-6)
            of_prototypes.addcmul_(w_KP, along_K[:, None], value=-1)
    return total / terms, of_features, of_prototypes
