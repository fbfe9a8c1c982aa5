"""MoCo v3 against the formula, written out, and its variants without teacher and predictor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.methods import MoCoV3, Outputs
from selfdistill.methods.mocov3 import MoCoV3Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock, LinearSchedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

BOTH, STUDENT, TEACHER = frozenset({"teacher", "student"}), frozenset({"student"}), frozenset({"teacher"})
NONE = TeacherPolicy.none()


def module(**settings: Any) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, **settings)


def views(*roles: frozenset[str]) -> Views:
    generator = torch.Generator().manual_seed(1)
    return Views([torch.randn(7, 1, 8, 8, generator=generator) for _ in roles], roles)


def paper(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """ctr(q_1, k_2) + ctr(q_2, k_1), each 2T times the mean cross-entropy over images."""
    total = 0
    for a, b in ((0, 1), (1, 0)):
        for i in range(q.shape[1]):
            exponentials = []
            for key in k[b]:
                dot = sum(x * y for x, y in zip(q[a, i], key, strict=True))
                lengths = (sum(x * x for x in q[a, i]) * sum(y * y for y in key)) ** 0.5
                exponentials.append((dot / lengths / temperature).exp())
            total = total - 2 * temperature * (exponentials[i] / sum(exponentials)).log() / q.shape[1]
    return torch.as_tensor(total)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_value_and_gradient_are_the_papers(temperature: float) -> None:
    moco = module(temperature=temperature)
    q, k = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 7, 5)
    loss = moco.terms(MoCoV3Outputs(q, q, ((0, 1), (1, 0)), own=q), Outputs(k, k))["contrast"]
    loss.backward()
    exact = q.detach().double().requires_grad_()
    expected = paper(exact, k.double(), temperature)
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert q.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(q.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_networks_modes_and_roles() -> None:
    moco = module()
    assert moco.teacher is not None
    assert moco.evaluated_tower is moco.student
    assert moco.teacher.training
    assert moco.teacher_policy == TeacherPolicy.ema(0.99, 1.0, mode="train")
    assert isinstance(moco.predictor, nn.Module)
    assert {id(p) for p in moco.parameter_roles()["predictor"]} == {id(p) for p in moco.predictor.parameters()}
    assert moco.parameter_roles()["patch_embed"] == []
    batch = views(BOTH, BOTH)
    predictions, targets = moco.predictions(batch), moco.targets(batch)
    assert predictions.pairs == ((0, 1), (1, 0))
    moco.terms(predictions, targets)["contrast"].backward()
    assert all(p.grad is not None for n, p in moco.named_parameters() if not n.startswith("teacher."))
    assert all(p.grad is None for p in moco.teacher.parameters())


def test_heads() -> None:
    resnet, vit = module(), module(projector_layers=3, predictor_norm="batch_affine_free")
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in resnet.student.head.layers] == [*hidden, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in vit.student.head.layers] == [*hidden, *hidden, nn.Linear, nn.BatchNorm1d]
    assert resnet.predictor is not None
    assert vit.predictor is not None
    assert [type(layer) for layer in resnet.predictor.layers] == [*hidden, nn.Linear]
    assert [type(layer) for layer in vit.predictor.layers] == [*hidden, nn.Linear, nn.BatchNorm1d]
    for moco in (resnet, vit):
        layers = [*moco.student.head.layers, *moco.predictor.layers]
        assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Linear))
        assert not moco.student.head.layers[-1].affine


def test_without_teacher_and_predictor_it_is_simclr_like() -> None:
    """Both sides get gradients: those of the symmetric loss of one set of embeddings."""
    simclr = module(teacher=NONE, temperature=0.2)
    assert simclr.predictor is None
    assert simclr.teacher is None
    assert simclr.parameter_roles()["predictor"] == []
    batch = views(BOTH, BOTH)
    assert simclr.targets(batch) is None
    predictions = simclr.predictions(batch)
    assert predictions.own is predictions.projections
    loss = simclr.terms(predictions, None)["contrast"]
    (gradient,) = torch.autograd.grad(loss, predictions.projections, retain_graph=True)
    exact = predictions.projections.detach().double().requires_grad_()
    expected = paper(exact, exact, 0.2)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert exact.grad is not None
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in simclr.parameters())


def test_without_teacher_a_predictor_brings_the_stop_gradient() -> None:
    moco = module(teacher=NONE, predictor=True, temperature=0.2)
    predictions = moco.predictions(views(BOTH, BOTH))
    assert not predictions.own.requires_grad
    assert moco.predictor is not None
    torch.testing.assert_close(predictions.projections, moco.predictor(predictions.own))
    loss = moco.terms(predictions, None)["contrast"]
    assert loss.item() == pytest.approx(paper(predictions.projections, predictions.own, 0.2).item(), rel=1e-5)


def test_without_teacher_keys_are_found_by_the_students_slots() -> None:
    simclr = module(teacher=NONE, predictor=False)
    assert simclr.predictions(views(STUDENT, BOTH, BOTH)).pairs == ((0, 1), (0, 2), (1, 2), (2, 1))
    with pytest.raises(ValueError, match="no pair of crops"):
        simclr.terms(simclr.predictions(views(STUDENT, TEACHER)), None)


def test_the_patch_projection_of_a_vit_has_a_role() -> None:
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    moco = MoCoV3(vit, hidden_dim=8, out_dim=5)
    assert [p.shape[0] for p in moco.parameter_roles()["patch_embed"]] == [16, 16]


def test_the_temperature_may_change_over_time_and_must_be_positive() -> None:
    moco = module(temperature=LinearSchedule(0.2, 1.0))
    moco.clock = Clock(step=5, total_steps=10)
    q, k = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    loss = moco.terms(MoCoV3Outputs(q, q, ((0, 1), (1, 0)), own=q), Outputs(k, k))["contrast"]
    assert loss.item() == pytest.approx(paper(q, k, 0.6).item(), rel=1e-5)
    with pytest.raises(ValueError, match="method.temperature must be a finite number > 0, got 0"):
        module(temperature=0)


def test_the_command_without_a_teacher_is_simclr_like(compose: Any) -> None:
    """NT-Xent but for its negatives of the same view: loops over both directions, gradients of the images included."""
    from selfdistill.assembly import build_method

    built = build_method(compose("method=mocov3_like", "teacher=none"))
    assert isinstance(built, MoCoV3)
    assert built.teacher is None
    assert built.predictor is None
    generator = torch.Generator().manual_seed(2)
    crops = [torch.randn(5, 1, 8, 8, generator=generator).requires_grad_() for _ in range(2)]
    predictions = built.predictions(Views(crops, (BOTH, BOTH)))
    loss = built.terms(predictions, built.targets(Views(crops, (BOTH, BOTH))))["contrast"]
    found = torch.autograd.grad(loss, crops)

    z = built.student(crops)[1]
    temperature, total = 0.2, torch.zeros(())
    for a, b in ((0, 1), (1, 0)):
        for i in range(5):
            similar = [torch.cosine_similarity(z[a, i], z[b, j], dim=0) / temperature for j in range(5)]
            total = total - 2 * temperature * (similar[i] - torch.stack(similar).logsumexp(0)) / 5
    expected = torch.autograd.grad(total, crops)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
