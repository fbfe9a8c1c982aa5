"""SimSiam against the formula, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.divergences import L2
from selfdistill.methods import SimSiam
from selfdistill.methods.simsiam import SimSiamOutputs
from selfdistill.networks import SmallCNN
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

BOTH, STUDENT, TEACHER = frozenset({"teacher", "student"}), frozenset({"student"}), frozenset({"teacher"})


def module(**settings: Any) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, predictor_dim=3, **settings)


def views(*roles: frozenset[str]) -> Views:
    generator = torch.Generator().manual_seed(1)
    return Views([torch.randn(7, 1, 8, 8, generator=generator) for _ in roles], roles)


def paper(p: Tensor, z: Tensor) -> Tensor:
    """Equation 3 with equation 1: ½ D(p_1, z_2) + ½ D(p_2, z_1), D = −cos, mean over images."""
    total = 0
    for i in range(p.shape[1]):
        for a, b in ((0, 1), (1, 0)):
            dot = sum(x * y for x, y in zip(p[a, i], z[b, i], strict=True))
            lengths = (sum(x * x for x in p[a, i]) * sum(y * y for y in z[b, i])) ** 0.5
            total = total - dot / lengths / 2
    return torch.as_tensor(total / p.shape[1])


def test_value_and_gradient_are_the_papers() -> None:
    simsiam = module()
    p, z = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 7, 5, requires_grad=True)
    loss = simsiam.terms(SimSiamOutputs(p, p, ((0, 1), (1, 0)), own=z), None)["distill"]
    loss.backward()
    assert z.grad is None  # stop-gradient
    exact = p.detach().double().requires_grad_()
    expected = paper(exact, z.detach().double())
    expected.backward()
    assert loss.item() - 1 == pytest.approx(expected.item(), abs=1e-6)
    assert p.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(p.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_it_teaches_itself_in_one_forward_pass() -> None:
    simsiam = module()
    assert simsiam.teacher is None
    assert simsiam.evaluated_tower is simsiam.student
    passes = []
    simsiam.student.register_forward_hook(lambda *_: passes.append(1))
    batch = views(BOTH, BOTH)
    assert simsiam.targets(batch) is None
    predictions = simsiam.predictions(batch)
    loss = simsiam.terms(predictions, None)["distill"]
    assert passes == [1]
    assert predictions.pairs == ((0, 1), (1, 0))
    torch.testing.assert_close(predictions.projections, simsiam.predictor(predictions.own))
    assert loss.item() - 1 == pytest.approx(paper(predictions.projections, predictions.own).item(), abs=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in simsiam.parameters())


def test_slots_of_the_student_where_a_local_crop_comes_first() -> None:
    simsiam = module()
    assert simsiam.predictions(views(STUDENT, BOTH, BOTH)).pairs == ((0, 1), (0, 2), (1, 2), (2, 1))
    # what only a teacher would see has no projection
    with pytest.raises(ValueError, match="no pair of crops"):
        simsiam.terms(simsiam.predictions(views(STUDENT, TEACHER)), None)


def test_heads_and_roles() -> None:
    simsiam = module()
    projector, predictor = simsiam.student.head.layers, simsiam.predictor.layers
    kinds = [type(layer) for layer in projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert not projector[-1].affine
    assert [type(layer) for layer in predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert predictor[0].out_features == 3
    roles = simsiam.parameter_roles()
    assert {id(p) for p in roles["predictor"]} == {id(p) for p in simsiam.predictor.parameters()}
    assert simsiam.optimizer_recipe.constant_lr == ("predictor",)


def test_with_a_teacher_its_projections_are_the_targets() -> None:
    simsiam = module(teacher=TeacherPolicy.ema(0.9, mode="train"))
    batch = views(BOTH, BOTH)
    targets, predictions = simsiam.targets(batch), simsiam.predictions(batch)
    assert targets is not None
    targets.projections = torch.randn(2, 7, 5, requires_grad=True)
    loss = simsiam.terms(predictions, targets)["distill"]
    assert loss.item() - 1 == pytest.approx(paper(predictions.projections, targets.projections).item(), abs=1e-6)
    loss.backward()
    assert targets.projections.grad is None


def test_another_divergence() -> None:
    p, z = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    loss = module(divergence=L2()).terms(SimSiamOutputs(p, p, ((0, 1), (1, 0)), own=z), None)["distill"]
    assert loss.item() == pytest.approx(((p - z.flip(0)) ** 2).sum(-1).mean().item(), rel=1e-5)
