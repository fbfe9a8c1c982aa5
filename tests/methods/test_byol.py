"""BYOL against the paper's formula, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from selfdistill.methods import BYOL, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock
from selfdistill.teacher import EMA
from selfdistill.views import Views

BOTH = frozenset({"teacher", "student"})


def module() -> BYOL:
    torch.manual_seed(0)
    return BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5)


def views(count: int = 2, batch: int = 7) -> Views:
    return Views([torch.randn(batch, 1, 8, 8) for _ in range(count)], (BOTH,) * count)


def normalised(x: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in x))
    return [v / length for v in x]


def paper(q: Tensor, z: Tensor) -> float:
    """Equation 2, symmetrised: Σ over both directions of ‖q̂ − ẑ'‖², mean over images."""
    total = 0.0
    for i in range(q.shape[1]):
        for a, b in ((0, 1), (1, 0)):
            left, right = normalised(q[a, i].tolist()), normalised(z[b, i].tolist())
            total += sum((x - y) ** 2 for x, y in zip(left, right, strict=True))
    return total / q.shape[1]


def test_value_and_gradient_are_the_papers() -> None:
    byol = module()
    q = torch.randn(2, 7, 5, requires_grad=True)
    z = torch.randn(2, 7, 5, requires_grad=True)
    predictions = Outputs(q, torch.zeros(2, 7, 6), pairs=((0, 1), (1, 0)))
    loss = byol.terms(predictions, Outputs(z, torch.zeros(2, 7, 6)))["distill"]
    assert loss.item() == pytest.approx(paper(q, z), rel=1e-5)
    loss.backward()
    assert z.grad is None  # stop-gradient
    # dL/dq = (2/B)·(I − q̂q̂ᵀ)(q̂ − ẑ)/‖q‖ for each direction
    assert q.grad is not None
    for a, b in ((0, 1), (1, 0)):
        for i in range(7):
            length = q[a, i].norm()
            unit, target = q[a, i] / length, z[b, i] / z[b, i].norm()
            difference = unit - target
            expected = 2 / 7 * (difference - unit * (unit @ difference)) / length
            torch.testing.assert_close(q.grad[a, i], expected.detach(), rtol=1e-4, atol=1e-6)


def test_the_predictor_is_the_students_alone() -> None:
    byol = module()
    assert byol.teacher is not None
    assert {n for n, _ in byol.teacher.named_parameters()} == {n for n, _ in byol.student.named_parameters()}
    batch = views()
    with torch.no_grad():
        student = byol.student(batch.student)[1]
        torch.testing.assert_close(byol.predictions(batch).projections, byol.predictor(student))
        torch.testing.assert_close(byol.targets(batch).projections, byol.teacher(batch.teacher)[1])
    assert byol.parameter_roles()["predictor"] == list(byol.predictor.parameters())


def test_student_is_evaluated_and_the_teacher_sees_batch_statistics() -> None:
    byol = module()
    assert byol.evaluated_tower is byol.student
    assert byol.teacher_policy.mode == "train"
    assert byol.teacher_policy.buffer_rule == "own"
    images = torch.randn(3, 1, 8, 8)
    byol.eval()
    torch.testing.assert_close(byol.embed(images), byol.student.backbone(images).pooled)


@pytest.mark.parametrize(("fraction", "momentum"), [(0, 0.99), (0.25, 0.99146447), (0.5, 0.995), (1, 1.0)])
def test_momentum_follows_the_papers_cosine(fraction: float, momentum: float) -> None:
    clock = Clock(step=int(1000 * fraction), total_steps=1000)
    assert module().teacher_policy.schedule(clock) == pytest.approx(momentum, abs=1e-8)


def test_gradients_reach_student_and_predictor_only() -> None:
    byol = module()
    batch = views()
    with torch.no_grad():
        targets = byol.targets(batch)
    byol.terms(byol.predictions(batch), targets)["distill"].backward()
    for name, parameter in byol.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name


def test_without_a_teacher_the_student_makes_the_targets() -> None:
    from selfdistill.teacher import TeacherPolicy

    byol = BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, teacher=TeacherPolicy.none())
    assert byol.teacher is None
    assert byol.teaching_tower is byol.student


def test_a_function_is_a_divergence() -> None:
    byol = BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, divergence=lambda s, t: (s - t).abs().sum(-1))
    q, z = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    value = byol.terms(Outputs(q, q, ((0, 1), (1, 0))), Outputs(z, z))["distill"]
    expected = ((q[0] - z[1]).abs().sum(-1) + (q[1] - z[0]).abs().sum(-1)).mean()
    torch.testing.assert_close(value, expected)


def test_the_teacher_follows_by_name() -> None:
    byol = module()
    assert byol.teacher is not None
    nn.init.ones_(byol.student.backbone.stages[0][0].weight)
    EMA(byol.teacher, byol.student, byol.teacher_policy.buffer_rule).update(0.0)
    assert torch.equal(byol.teacher.backbone.stages[0][0].weight, byol.student.backbone.stages[0][0].weight)
