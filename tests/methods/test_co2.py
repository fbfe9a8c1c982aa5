"""CO2 against the formula, written out probability by probability."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import CO2, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock, LinearSchedule
from selfdistill.views import Views

STUDENT, TEACHER = frozenset({"student"}), frozenset({"teacher"})


def module(**settings: Any) -> CO2:
    torch.manual_seed(0)
    return CO2(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, queue_length=6, **settings)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def paper(q: Tensor, k: Tensor, negatives: Tensor, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """InfoNCE at .2, and half of both Kullback-Leibler divergences over the negatives at .05; means over queries."""
    contrast, consistency = [], []
    for s, t in pairs:
        for query, key in zip(q[s], k[t], strict=True):
            right = (cosine(query, key) / 0.2).exp()
            contrast.append(-(right / (right + sum((cosine(query, n) / 0.2).exp() for n in negatives))).log())
            one, other = ([(cosine(x, n) / 0.05).exp() for n in negatives] for x in (query, key))
            mine, theirs = [e / sum(one) for e in one], [e / sum(other) for e in other]
            there = sum(a * (a / b).log() for a, b in zip(theirs, mine, strict=True))
            back = sum(b * (b / a).log() for a, b in zip(theirs, mine, strict=True))
            consistency.append(0.5 * (there + back))
    return sum(contrast) / len(contrast), sum(consistency) / len(consistency)


def test_values_and_gradients_are_the_papers() -> None:
    co2 = module()
    q, k = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 7, 5)
    pairs = ((0, 1), (1, 0))
    terms = co2.terms(Outputs(q, q, pairs), Outputs(k, k))
    assert list(terms) == ["contrast", "consistency"]
    exact = q.detach().double().requires_grad_()
    expected = paper(exact, k.double(), co2.queue().double(), list(pairs))
    for term, value in zip(terms.values(), expected, strict=True):
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(value.item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(term, q, retain_graph=True)
        (wanted,) = torch.autograd.grad(value, exact, retain_graph=True)
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_positive_takes_no_part_in_the_consistency() -> None:
    """Moving the key along what no negative sees changes the contrast alone."""
    co2 = module()
    co2.queue.items[:, 4] = 0.0
    q, k = torch.randn(1, 7, 5), torch.randn(1, 7, 5)
    k[..., 4] = 1.0
    mirrored = k * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    one, other = (co2.terms(Outputs(q, q, ((0, 0),)), Outputs(x, x)) for x in (k, mirrored))
    assert torch.equal(one["consistency"], other["consistency"])
    assert not torch.allclose(one["contrast"], other["contrast"])


def test_agreement_costs_nothing() -> None:
    co2, q = module(), torch.randn(1, 7, 5)
    assert co2.terms(Outputs(q, q, ((0, 0),)), Outputs(q, q))["consistency"].item() == pytest.approx(0, abs=1e-6)


def test_the_weight_of_consistency() -> None:
    assert module().weights["consistency"](Clock()) == 0.3
    assert module(weights={"contrast": 2.0}).weights["consistency"](Clock()) == 0.3
    ramped = module(weights={"consistency": LinearSchedule(0.0, 1.0)})
    assert ramped.weights["consistency"](Clock(5, 10)) == 0.5


def test_networks_modes_and_queue() -> None:
    co2 = module()
    assert co2.teacher is not None
    assert co2.evaluated_tower is co2.student
    assert co2.teacher.training
    assert co2.parameter_roles() == {}
    generator = torch.Generator().manual_seed(1)
    batch = Views([torch.randn(3, 1, 8, 8, generator=generator) for _ in range(2)], (STUDENT, TEACHER))
    predictions, targets = co2.predictions(batch), co2.targets(batch)
    terms = co2.terms(predictions, targets)
    (terms["contrast"] + terms["consistency"]).backward()
    assert all(p.grad is not None for p in co2.student.parameters())
    assert all(p.grad is None for p in co2.teacher.parameters())
    before = co2.queue().clone()
    co2.observe(predictions, targets)
    assert torch.equal(co2.queue(), before)
    co2.queue.commit()
    for row, key in zip(co2.queue(), targets.projections[0], strict=False):
        torch.testing.assert_close(row, key / key.norm())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="method.consistency_temperature must be a finite number > 0, got -1"):
        module(consistency_temperature=-1)
    with pytest.raises(ValueError, match="method.temperature"):
        module(temperature=0.0)
