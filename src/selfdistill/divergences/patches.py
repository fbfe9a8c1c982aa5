"""The cross-entropy of masked patches, in which every image counts alike however much of it is masked."""

from __future__ import annotations

from torch import Tensor

from selfdistill.divergences.fused import fused_cross_entropy

__all__ = ["patch_cross_entropy"]


def patch_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    images: int,
    *,
    student_temperature: float,
    teacher_temperature: float | None,
) -> Tensor:
    """Mean over images of the mean cross-entropy over an image's masked patches (iBOT, arXiv 2111.07832, eq. 2).

    1/images · Σ_m w_m · (−Σ_k p_mk log softmax(s_m / τ_s)_k),  p_m = softmax(t_m / τ_t)

    An image without a masked patch adds nothing and still counts in the mean, as in the authors' code and DINOv2's.
    Value, memory and gradients as `fused_cross_entropy`.

    Args:
        student: [M, K] logits of the masked patches of all images.
        teacher: [M, K] logits after centering, or probabilities: see `teacher_temperature`.
        weight: [M], 1 / the number of masked patches in the patch's image.
        images: number of images, those without masks included.
        student_temperature: > 0.
        teacher_temperature: > 0, or None where `teacher` holds probabilities.

    Returns:
        Scalar, in float32 (float64 if an input is).

    Raises:
        ValueError: an argument has the wrong shape or is out of range.
    """
    if weight.shape != teacher.shape[:1] or images < 1:
        raise ValueError(
            f"weight must have one number a row of teacher, images be at least 1; got {list(weight.shape)} for "
            f"{list(teacher.shape)}, and {images}"
        )
    mean = fused_cross_entropy(
        student[None],
        teacher[None],
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        pairs=[(0, 0)],
        weight=weight,
    )
    return mean * (len(student) / images)
