"""The cross-entropy of masked patches against loops."""

from __future__ import annotations

import math

import pytest
import torch

from selfdistill.divergences.patches import patch_cross_entropy

IMAGES = [[0, 1, 2], [], [3]]  # patches of each image
WEIGHT = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0])


def slow(student: list[list[float]], teacher: list[list[float]]) -> float:
    """Mean over images of the mean over their masked patches, 0 without; τ_s = .1, τ_t = .5."""

    def softmax(x: list[float], temperature: float) -> list[float]:
        e = [math.exp((v - max(x)) / temperature) for v in x]
        return [v / sum(e) for v in e]

    total = 0.0
    for patches in IMAGES:
        losses = []
        for m in patches:
            p, q = softmax(teacher[m], 0.5), softmax(student[m], 0.1)
            losses.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
        total += sum(losses) / max(len(losses), 1)
    return total / len(IMAGES)


def test_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.rand(4, 5, generator=generator).requires_grad_()
    teacher = torch.rand(4, 5, generator=generator).requires_grad_()
    loss = patch_cross_entropy(student, teacher, WEIGHT, 3, student_temperature=0.1, teacher_temperature=0.5)
    assert loss.item() == pytest.approx(slow(student.tolist(), teacher.tolist()), rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    # (q − p)·w / (τ_s·images), q and p the softmaxes
    expected = (torch.softmax(student / 0.1, 1) - torch.softmax(teacher / 0.5, 1)) * WEIGHT[:, None] / 0.1 / 3
    torch.testing.assert_close(student.grad, expected.detach())


def test_probabilities_are_taken_as_they_are() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    a = patch_cross_entropy(student, teacher, WEIGHT, 3, student_temperature=0.1, teacher_temperature=0.5)
    codes = torch.softmax(teacher / 0.5, 1)
    b = patch_cross_entropy(student, codes, WEIGHT, 3, student_temperature=0.1, teacher_temperature=None)
    torch.testing.assert_close(a, b)


def test_a_row_without_weight_adds_nothing() -> None:
    student = torch.randn(1, 5, requires_grad=True)
    loss = patch_cross_entropy(
        student, torch.randn(1, 5), torch.zeros(1), 6, student_temperature=0.1, teacher_temperature=0.5
    )
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros(1, 5))  # type: ignore[arg-type]


def test_half_precision_computes_in_float32() -> None:
    student, teacher = torch.randn(4, 5).bfloat16(), torch.randn(4, 5).bfloat16()
    half = patch_cross_entropy(student, teacher, WEIGHT, 3, student_temperature=0.1, teacher_temperature=0.04)
    full = patch_cross_entropy(
        student.float(), teacher.float(), WEIGHT, 3, student_temperature=0.1, teacher_temperature=0.04
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full)


@pytest.mark.parametrize(("weight", "images"), [(torch.ones(3), 3), (torch.ones(4), 0)])
def test_refused(weight: torch.Tensor, images: int) -> None:
    with pytest.raises(ValueError, match="weight must have one number a row of teacher"):
        patch_cross_entropy(
            torch.randn(4, 5), torch.randn(4, 5), weight, images, student_temperature=0.1, teacher_temperature=0.1
        )
