"""MoCo v2 against the formula, written out similarity by similarity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import MoCo, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock, LinearSchedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

BOTH, STUDENT, TEACHER = frozenset({"teacher", "student"}), frozenset({"student"}), frozenset({"teacher"})
CASES = {
    "published": (STUDENT, TEACHER),
    "symmetric": (BOTH, BOTH),
    "local crop": (BOTH, BOTH, STUDENT),
}


def module(**settings: Any) -> MoCo:
    torch.manual_seed(0)
    return MoCo(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, queue_length=11, **settings)


def views(roles: tuple[frozenset[str], ...], batch: int = 7) -> Views:
    generator = torch.Generator().manual_seed(1)
    return Views([torch.randn(batch, 1, 8, 8, generator=generator) for _ in roles], roles)


def normalised(x: Tensor) -> Tensor:
    return x / sum(v * v for v in x) ** 0.5


def paper(q: Tensor, k: Tensor, negatives: Tensor, pairs: list[tuple[int, int]], temperature: float) -> Tensor:
    """Equation 1 of arXiv 1911.05722 for each query and its key, mean over all."""
    losses = []
    for s, t in pairs:
        for i in range(q.shape[1]):
            query, key = normalised(q[s, i]), normalised(k[t, i])
            right = (sum(a * b for a, b in zip(query, key, strict=True)) / temperature).exp()
            wrong = [(sum(a * b for a, b in zip(query, n, strict=True)) / temperature).exp() for n in negatives]
            losses.append(-(right / (right + sum(wrong))).log())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_papers(case: str) -> None:
    moco = module()
    batch = views(CASES[case])
    pairs = [
        (s, t)
        for s, a in enumerate([c for c, roles in enumerate(batch.roles) if "student" in roles])
        for t, b in enumerate([c for c, roles in enumerate(batch.roles) if "teacher" in roles])
        if a != b
    ]
    q = torch.randn(len(batch.student), 7, 5, requires_grad=True)
    k = torch.randn(len(batch.teacher), 7, 5)
    loss = moco.terms(Outputs(q, q, batch.pairs), Outputs(k, k))["contrast"]
    loss.backward()
    exact = q.detach().double().requires_grad_()
    expected = paper(exact, k.double(), moco.queue().double(), pairs, 0.2)
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert q.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(q.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_a_key_becomes_a_negative_after_its_step_and_not_before() -> None:
    moco = module()
    batch = views(CASES["published"])
    predictions, targets = moco.predictions(batch), moco.targets(batch)
    before, loss = moco.queue().clone(), moco.terms(predictions, targets)["contrast"]
    moco.observe(predictions, targets)
    assert torch.equal(moco.queue(), before)
    assert torch.equal(moco.terms(predictions, targets)["contrast"], loss)
    moco.queue.commit()
    keys = torch.stack([normalised(key) for key in targets.projections[0]])
    torch.testing.assert_close(moco.queue()[:7], keys)
    assert torch.equal(moco.queue()[7:], before[7:])
    assert moco.terms(predictions, targets)["contrast"] > loss


def test_micro_batches_enter_as_one_batch_and_a_skipped_step_does_not() -> None:
    whole, parts, skipped = module(), module(), module()
    k = torch.randn(1, 9, 5)
    nothing: Any = None
    whole.observe(nothing, Outputs(k, k))
    for part in (k[:, :4], k[:, 4:]):
        parts.observe(nothing, Outputs(part, part))
        skipped.observe(nothing, Outputs(part, part))
    before = skipped.queue().clone()
    skipped.queue.discard()
    for each in (whole, parts, skipped):
        each.queue.commit()
    assert torch.equal(parts.queue(), whole.queue())
    assert torch.equal(skipped.queue(), before)


def test_networks_and_modes() -> None:
    moco = module()
    assert moco.teacher is not None
    assert moco.evaluated_tower is moco.student
    assert moco.teacher.training
    assert moco.teacher_policy.buffer_rule == "own"
    assert moco.teacher_policy == TeacherPolicy.ema(0.999, shape="constant", mode="train")
    assert [type(layer).__name__ for layer in moco.student.head.layers] == ["Linear", "ReLU", "Linear"]
    assert moco.parameter_roles() == {}
    batch = views(CASES["published"])
    moco.terms(moco.predictions(batch), moco.targets(batch))["contrast"].backward()
    assert all(p.grad is not None for p in moco.student.parameters())
    assert all(p.grad is None for p in moco.teacher.parameters())
    moco.eval()
    images = batch.crops[0]
    assert torch.equal(moco.embed(images), moco.student.backbone(images).pooled)


def test_the_temperature_may_change_over_time() -> None:
    moco = module(temperature=LinearSchedule(0.2, 1.0))
    q, k = torch.randn(1, 7, 5), torch.randn(1, 7, 5)
    moco.clock = Clock(step=5, total_steps=10)
    loss = moco.terms(Outputs(q, q, ((0, 0),)), Outputs(k, k))["contrast"]
    assert loss.item() == pytest.approx(paper(q, k, moco.queue(), [(0, 0)], 0.6).item(), rel=1e-5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="method.temperature must be a finite number > 0, got 0"):
        module(temperature=0)
    moco = module()
    with pytest.raises(ValueError, match="no pair of crops"):
        moco.terms(Outputs(torch.zeros(1, 7, 5), torch.zeros(1, 7, 6)), Outputs(torch.zeros(1, 7, 5), torch.zeros(1)))
