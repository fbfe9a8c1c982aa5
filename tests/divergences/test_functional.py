"""Closed forms; values, shapes and precisions of all divergences are in test_modules.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.divergences.functional import cosine, cross_entropy, js, kl, l2, l2_normalized, smooth_l1


def pair(*shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).double() * scale
    return student, teacher


def test_l2_is_a_sum_and_smooth_l1_a_mean_over_features():
    student, teacher = torch.full((2, 8), 3.0), torch.zeros(2, 8)
    assert l2(student, teacher).tolist() == [72, 72]
    assert smooth_l1(student, teacher).tolist() == [2.5, 2.5]
    assert smooth_l1(student, teacher, beta=6).tolist() == [0.75, 0.75]


def test_smooth_l1_has_the_mean_of_i_jepa():
    student, teacher = pair(5, 7)
    for beta in (0.5, 1.0, 2.0):
        expected = F.smooth_l1_loss(student, teacher, beta=beta)
        torch.testing.assert_close(smooth_l1(student, teacher, beta=beta).mean(), expected)


def test_directions_at_known_angles():
    student = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]])
    assert l2_normalized(student, teacher).tolist() == [0, 2, 4]
    assert cosine(student, teacher).tolist() == [0, 1, 2]


def test_l2_normalized_is_accurate_near_zero():
    student = pair(50, 16)[0].float()
    teacher = student + 1e-5 * torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    exact = 2 - 2 * F.cosine_similarity(student.double(), teacher.double(), dim=-1)
    assert exact.max() < 1e-8  # in float32, 2 − 2 cos has steps of 1e-7 here
    torch.testing.assert_close(l2_normalized(student, teacher).double(), exact, rtol=0.05, atol=0)


@pytest.mark.parametrize("norm", [1e-7, 0.0])
def test_floor_is_on_the_squared_norm(norm: float):
    student, teacher = torch.tensor([[norm, 0.0]], requires_grad=True), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(cosine(student, teacher), torch.tensor([1.0]), rtol=0, atol=0)
    value = l2_normalized(student, teacher)
    torch.testing.assert_close(value, torch.tensor([1 + (norm * 1e6) ** 2]))
    value.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[2e12 * norm, -2e6]]))


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
def test_kl_at_high_temperature_is_a_centred_distance(direction: str):
    student, teacher = pair(5, 6)
    difference = student - teacher
    centred = difference - difference.mean(-1, keepdim=True)
    expected = centred.square().sum(-1) / (2 * 6)
    for temperature, tolerance in [(1e2, 5e-2), (1e4, 5e-4)]:
        value = kl(
            student,
            teacher,
            direction=direction,
            student_temperature=temperature,
            teacher_temperature=temperature,
        )
        torch.testing.assert_close(temperature**2 * value, expected, rtol=tolerance, atol=0)


def test_kl_of_two_coins():
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)  # (3/4, 1/4) and (1/2, 1/2)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    torch.testing.assert_close(kl(student, teacher), torch.tensor([forward]))
    torch.testing.assert_close(kl(student, teacher, direction="teacher_student"), torch.tensor([backward]))


def test_cross_entropy_is_kl_plus_the_entropy_of_the_teacher():
    student, teacher = pair(5, 6)
    temperatures = {"student_temperature": 0.5, "teacher_temperature": 0.2}
    entropy = torch.distributions.Categorical(logits=teacher / 0.2).entropy()
    torch.testing.assert_close(
        cross_entropy(student, teacher, **temperatures),
        kl(student, teacher, direction="teacher_student", **temperatures) + entropy,
    )


@pytest.mark.parametrize("size", [2, 10, 65536])
def test_cross_entropy_of_a_uniform_student_is_ln_k(size: int):
    teacher = pair(3, size, scale=100)[1].float()
    value = cross_entropy(torch.full((3, size), 7.0), teacher, student_temperature=0.1, teacher_temperature=0.04)
    torch.testing.assert_close(value, torch.full((3,), math.log(size)))


def test_gradient_of_cross_entropy_and_kl_is_the_difference_of_probabilities():
    student, teacher = pair(5, 6)
    student.requires_grad_()
    expected = (torch.softmax(student / 0.1, -1) - torch.softmax(teacher / 0.04, -1)).detach() / 0.1
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    for value in (
        cross_entropy(student, teacher, **temperatures),
        kl(student, teacher, direction="teacher_student", **temperatures),
    ):
        torch.testing.assert_close(torch.autograd.grad(value.sum(), student)[0], expected)


def test_js_reaches_ln_2_where_nothing_overlaps():
    student = torch.tensor([[1e4, -1e4], [0.0, 0.0]])
    torch.testing.assert_close(js(student, -student), torch.tensor([math.log(2), 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("divergence", [kl, js, cross_entropy])
@pytest.mark.parametrize("name", ["student_temperature", "teacher_temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_refuses_temperatures(divergence, name: str, value: float):
    with pytest.raises(ValueError, match=f"^{name} must be a finite number > 0, got {value}$"):
        divergence(*pair(2, 3), **{name: value})


def test_refuses_other_options():
    with pytest.raises(ValueError, match="^direction must be one of student_teacher, teacher_student, got 'both'$"):
        kl(*pair(2, 3), direction="both")
    with pytest.raises(ValueError, match="^beta must be a finite number > 0, got 0$"):
        smooth_l1(*pair(2, 3), beta=0)
