"""ReSSL against the formula, written out probability by probability."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.divergences import JS, KL, CrossEntropy, NormalizedL2
from selfdistill.methods import Outputs, ReSSL
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock, LinearSchedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

STUDENT, TEACHER = frozenset({"student"}), frozenset({"teacher"})


def module(**settings: Any) -> ReSSL:
    torch.manual_seed(0)
    return ReSSL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, queue_length=6, **settings)


def relation(x: Tensor, others: Tensor, temperature: float) -> list[Tensor]:
    length = sum(v * v for v in x) ** 0.5
    exponentials = [(sum(a * b for a, b in zip(x, n, strict=True)) / length / temperature).exp() for n in others]
    return [e / sum(exponentials) for e in exponentials]


def paper(q: Tensor, k: Tensor, others: Tensor, pairs: list[tuple[int, int]], temperatures: Any) -> Tensor:
    """Cross-entropy of the student's relation under the teacher's, mean over queries."""
    losses = []
    for s, t in pairs:
        for query, key in zip(q[s], k[t], strict=True):
            student, teacher = relation(query, others, temperatures[0]), relation(key, others, temperatures[1])
            losses.append(-sum(b * a.log() for a, b in zip(student, teacher, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("pairs", [((0, 0),), ((0, 1), (1, 0)), ((0, 1), (1, 0), (2, 0), (2, 1))])
def test_value_and_gradient_are_the_papers(pairs: tuple[tuple[int, int], ...]) -> None:
    ressl = module()
    q, k = torch.randn(3, 7, 5, requires_grad=True), torch.randn(2, 7, 5)
    loss = ressl.terms(Outputs(q, q, pairs), Outputs(k, k))["relation"]
    loss.backward()
    exact = q.detach().double().requires_grad_()
    expected = paper(exact, k.double(), ressl.queue().double(), list(pairs), (0.1, 0.04))
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert q.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(q.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_the_divergence_and_the_teachers_entropy() -> None:
    q, k = torch.randn(1, 7, 5), torch.randn(1, 7, 5)
    outputs = Outputs(q, q, ((0, 0),)), Outputs(k, k)
    values = {d: module(divergence=d).terms(*outputs)["relation"] for d in (CrossEntropy(), KL("teacher_student"))}
    teachers = [relation(key, module().queue(), 0.04) for key in k[0]]
    entropy = -sum((p * p.log()).item() for probabilities in teachers for p in probabilities) / 7
    cross_entropy, divergence = (v.item() for v in values.values())
    assert cross_entropy - divergence == pytest.approx(entropy, rel=1e-4)


def test_other_divergences_and_schedules() -> None:
    q, k = torch.randn(1, 7, 5), torch.randn(1, 7, 5)
    outputs = Outputs(q, q, ((0, 0),)), Outputs(k, k)
    assert 0 < module(divergence=JS()).terms(*outputs)["relation"].item() < 0.6932
    moving = module(teacher_temperature=LinearSchedule(0.04, 0.08))
    moving.clock = Clock(step=5, total_steps=10)
    expected = paper(q, k, moving.queue(), [(0, 0)], (0.1, 0.06))
    assert moving.terms(*outputs)["relation"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_networks_modes_and_queue() -> None:
    ressl = module()
    assert ressl.teacher is not None
    assert ressl.evaluated_tower is ressl.student
    assert ressl.teacher.training
    assert ressl.teacher_policy == TeacherPolicy.ema(0.999, shape="constant", mode="train")
    assert [type(layer).__name__ for layer in ressl.student.head.layers] == ["Linear", "ReLU", "Linear"]
    generator = torch.Generator().manual_seed(1)
    batch = Views([torch.randn(3, 1, 8, 8, generator=generator) for _ in range(2)], (STUDENT, TEACHER))
    predictions, targets = ressl.predictions(batch), ressl.targets(batch)
    loss = ressl.terms(predictions, targets)["relation"]
    loss.backward()
    assert all(p.grad is not None for p in ressl.student.parameters())
    assert all(p.grad is None for p in ressl.teacher.parameters())
    before = ressl.queue().clone()
    ressl.observe(predictions, targets)
    assert torch.equal(ressl.terms(predictions, targets)["relation"], loss)
    ressl.queue.commit()
    for row, key in zip(ressl.queue(), targets.projections[0], strict=False):
        torch.testing.assert_close(row, key / key.norm())
    assert torch.equal(ressl.queue()[3:], before[3:])


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"divergence: NormalizedL2 given.*choose divergence=cross_entropy, kl"):
        module(divergence=NormalizedL2())
    with pytest.raises(ValueError, match="method.student_temperature must be a finite number > 0, got 0"):
        module(student_temperature=0)
    with pytest.raises(ValueError, match="method.teacher_temperature"):
        module(teacher_temperature=-0.1)
