"""SwAV against the paper's formulas, written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import selfdistill.methods.swav as swav_file
from selfdistill.methods import Outputs, SwAV
from selfdistill.methods.swav import SwAVOutputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

B, P, K = 5, 4, 6
BOTH, STUDENT, TEACHER = frozenset({"teacher", "student"}), frozenset({"student"}), frozenset({"teacher"})
# two large crops, two small ones
PAIRS = ((0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1))
START = Clock(step=150, total_steps=1000, steps_per_epoch=10)


def module(**settings: Any) -> SwAV:
    torch.manual_seed(0)
    arguments = {"hidden_dim": 8, "out_dim": P, "prototypes": K, **settings}
    return SwAV(SmallCNN(1, (4, 4, 4, 6)), **arguments)


def views(roles: tuple[frozenset[str], ...] = (BOTH, BOTH, STUDENT, STUDENT)) -> Views:
    sizes = [8 if role == BOTH else 6 for role in roles]
    return Views([torch.randn(B, 1, size, size) for size in sizes], roles)


def outputs(seed: int = 1, batch: int = B) -> SwAVOutputs:
    torch.manual_seed(seed)
    z = torch.randn(4, batch, P, requires_grad=True)
    return SwAVOutputs(z, torch.zeros(4, batch, 6), PAIRS, (0, 1))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def codes(z: Tensor, c: Tensor) -> list[list[float]]:
    """Sinkhorn-Knopp: exp(score/ε), then three times prototypes to equal mass and samples to mass 1."""
    q = [[math.exp(float(row @ proto) / 0.05) for proto in c] for row in unit(z.detach().double())]
    for _ in range(3):
        for k in range(K):
            mass = sum(row[k] for row in q)
            for row in q:
                row[k] *= len(q) / K / mass
        q = [[v / sum(row) for v in row] for row in q]
    return q


def paper(z: Tensor, c: Tensor, past: list[Tensor] | None = None) -> Tensor:
    """Mean over the two large crops i of 1/(V−1) Σ_{v≠i} of the batch's mean cross-entropy."""
    z, total = z.double(), torch.zeros((), dtype=torch.float64)
    batch = z.shape[1]
    for i in (0, 1):
        rows = z[i] if past is None else torch.cat([past[i].double(), z[i]])
        q = codes(rows, c.detach().double())[-batch:]
        for v in range(4):
            for b in range(batch):
                scores = [unit(z[v, b]) @ c[k].double() / 0.1 for k in range(K)]
                log_sum = torch.stack(scores).exp().sum().log()
                if v != i:
                    total = total - sum(q[b][k] * (scores[k] - log_sum) for k in range(K)) / (2 * 3 * batch)
    return total


def test_value_and_gradient_are_the_papers() -> None:
    """The reference takes its codes from detached scores: equal gradients show the stop-gradient."""
    swav, predictions = module(), outputs()
    z, c = predictions.projections, swav.prototypes.weight
    swav.terms(predictions, None)["cluster"].backward()
    found = z.grad, c.grad
    z.grad = c.grad = None
    loss = paper(z, c)
    loss.backward()
    assert swav.terms(predictions, None)["cluster"].item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(found[0], z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], c.grad, rtol=1e-4, atol=1e-6)


def test_the_queue_starts_at_its_epoch_and_serves_when_full() -> None:
    swav = module(queue_length=8)
    assert swav.queue is not None
    predictions = outputs()
    alone = swav.terms(predictions, None)["cluster"].item()
    fed: list[Tensor] = []
    for step, seed in ((149, 2), (150, 3), (151, 4)):
        swav.clock = Clock(step=step, total_steps=1000, steps_per_epoch=10)
        past = outputs(seed)
        swav.observe(past, None)
        swav.queue.commit()
        if step >= 150:
            fed.append(past.projections[:2].detach())
        if step < 151:
            assert swav.terms(predictions, None)["cluster"].item() == alone
    rows = [torch.cat([batch[i] for batch in fed])[-8:] for i in (0, 1)]
    expected = paper(predictions.projections, swav.prototypes.weight, rows).item()
    assert swav.terms(predictions, None)["cluster"].item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(alone, rel=1e-3)


def test_a_queue_comes_back_with_its_checkpoint() -> None:
    swav = module(queue_length=4)
    assert swav.queue is not None
    swav.clock = START
    swav.observe(outputs(), None)
    swav.queue.commit()
    again = module(queue_length=4)
    again.load_state_dict(swav.state_dict())
    predictions = outputs(2)
    assert torch.equal(again.terms(predictions, None)["cluster"], swav.terms(predictions, None)["cluster"])


def test_each_rank_brings_its_share_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinkhorn adds over ranks: the whole queue on each of two would count twice."""
    swav = module(queue_length=4)
    assert swav.queue is not None
    swav.clock = START
    swav.observe(outputs(), None)
    swav.queue.commit()
    monkeypatch.setattr(swav_file, "rank", lambda: 1)
    monkeypatch.setattr(swav_file, "world_size", lambda: 2)
    predictions = outputs(2)
    rows = [swav.queue.items[1::2, i * P : (i + 1) * P] for i in (0, 1)]
    expected = paper(predictions.projections, swav.prototypes.weight, rows).item()
    assert swav.terms(predictions, None)["cluster"].item() == pytest.approx(expected, rel=1e-5)


def test_prototypes_return_to_unit_length_in_commit() -> None:
    swav = module()
    with torch.no_grad():
        swav.prototypes.weight.mul_(3)
    direction = unit(swav.prototypes.weight.detach())
    swav.prototypes.commit()
    torch.testing.assert_close(swav.prototypes.weight.detach(), direction)


def test_prototypes_stand_still_at_first_and_decay() -> None:
    swav = module()
    roles = swav.parameter_roles()
    assert roles["prototypes"] == [swav.prototypes.weight]
    recipe = swav.optimizer_recipe
    for step, frozen in ((0, True), (312, True), (313, False)):
        swav.prototypes.weight.grad = torch.ones_like(swav.prototypes.weight)
        recipe.freeze_gradients(roles, Clock(step=step, total_steps=1000))
        assert (swav.prototypes.weight.grad is None) is frozen
    # LARC in the authors' code: every parameter decays and is adapted
    groups = recipe.build(swav.trained_parameters(), roles).param_groups
    assert {(group["weight_decay"], group["adapt"]) for group in groups} == {(1e-6, True)}


def test_the_student_teaches_itself_and_is_evaluated() -> None:
    swav, batch = module(), views()
    assert swav.teacher is None
    assert swav.targets(batch) is None
    assert swav.evaluated_tower is swav.student
    predictions = swav.predictions(batch)
    assert predictions.assigned == (0, 1)
    assert predictions.pairs == PAIRS
    assert predictions.projections.shape == (4, B, P)
    swav.terms(predictions, None)["cluster"].backward()
    assert all(parameter.grad is not None for parameter in swav.parameters())


def test_a_teacher_gives_the_codes_where_there_is_one() -> None:
    swav = module(teacher=TeacherPolicy.ema(0.9, mode="train"), queue_length=4)
    targets = swav.targets(views())
    assert targets is not None
    assert targets.projections.shape == (2, B, P)
    mine, theirs = outputs(), Outputs(torch.randn(2, B, P, requires_grad=True), torch.zeros(2, B, 6))
    loss = swav.terms(mine, theirs)["cluster"]
    loss.backward()
    assert theirs.projections.grad is None
    # the same crops of the teacher in the student's first two slots give the same codes
    own = SwAVOutputs(torch.cat([theirs.projections, mine.projections[2:]]), mine.features, PAIRS, (0, 1))
    assert loss.item() != pytest.approx(swav.terms(mine, None)["cluster"].item(), rel=1e-3)
    small = tuple(pair for pair in PAIRS if pair[0] > 1)
    mine.pairs = own.pairs = small
    torch.testing.assert_close(swav.terms(mine, theirs)["cluster"], swav.terms(own, None)["cluster"])
    swav.clock = START
    swav.observe(mine, theirs)
    assert swav.queue is not None
    swav.queue.commit()
    expected = torch.cat(list(theirs.projections), dim=1)[-4:].detach()
    torch.testing.assert_close(swav.queue.items.sort(0).values, expected.sort(0).values)


def test_half_precision_embeddings_give_a_float32_loss() -> None:
    swav, predictions = module(), outputs()
    half = SwAVOutputs(predictions.projections.bfloat16(), predictions.features, PAIRS, (0, 1))
    loss = swav.terms(half, None)["cluster"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(swav.terms(predictions, None)["cluster"].item(), rel=2e-2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"views: one for the teacher alone given"):
        module().predictions(views((STUDENT, TEACHER)))
    with pytest.raises(ValueError, match=r"method.queue_length: not 0 beside 3 teacher views, allowed are 2"):
        module(queue_length=4).predictions(views((BOTH, BOTH, BOTH)))
    with pytest.raises(ValueError, match=r"method.queue_length: -1 given"):
        module(queue_length=-1)
    with pytest.raises(ValueError, match=r"method.queue_start: 'soon' given"):
        module(queue_start="soon")
    with pytest.raises(ValueError, match=r"method.epsilon must be"):
        module(epsilon=0.0)
