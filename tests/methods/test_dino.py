"""DINO against the paper's formulas, written out in Python floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfdistill.divergences import JS, KL, L2, CrossEntropy
from selfdistill.methods import DINO, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock, LinearSchedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

B, K = 5, 7
BOTH, STUDENT = frozenset({"teacher", "student"}), frozenset({"student"})
# two global crops, two local ones
PAIRS = ((0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1))
# a third of the way up the temperature's warm-up
CLOCK = Clock(step=100, total_steps=3000, steps_per_epoch=10)
TAU_T = 0.04 + 0.03 / 3


def module(**settings: Any) -> DINO:
    torch.manual_seed(0)
    arguments = {"hidden_dim": 8, "bottleneck_dim": 6, "prototypes": K, **settings}
    dino = DINO(SmallCNN(1, (4, 4, 4, 6)), **arguments)
    dino.clock = CLOCK
    return dino


def views(batch: int = B) -> Views:
    sizes = (8, 8, 6, 6)
    return Views([torch.randn(batch, 1, size, size) for size in sizes], (BOTH, BOTH, STUDENT, STUDENT))


def outputs(batch: int = B) -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    s = torch.empty(4, batch, K).uniform_(-1, 1).requires_grad_()
    t = torch.empty(2, batch, K).uniform_(-1, 1).requires_grad_()
    return Outputs(s, torch.zeros(4, batch, 6), PAIRS), Outputs(t, torch.zeros(2, batch, 6))


def softmax(x: list[float], temperature: float) -> list[float]:
    e = [math.exp(v / temperature) for v in x]
    return [v / sum(e) for v in e]


def centred(t: Tensor, center: Tensor) -> list[list[list[float]]]:
    return [[softmax((row - center[0]).tolist(), TAU_T) for row in crop] for crop in t.double()]


def balanced(t: Tensor) -> list[list[list[float]]]:
    """Sinkhorn-Knopp over both crops' rows: three times prototypes to N/K, then rows to 1."""
    rows = [[math.exp(v / TAU_T) for v in row.tolist()] for crop in t.double() for row in crop]
    for _ in range(3):
        for k in range(K):
            mass = sum(row[k] for row in rows)
            for row in rows:
                row[k] *= len(rows) / K / mass
        rows = [[v / sum(row) for v in row] for row in rows]
    return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


def paper(s: Tensor, p_t: list[list[list[float]]]) -> tuple[float, Tensor]:
    """Equation 3 as a mean over pairs and images, and its gradient (p_s − p_t)/τ_s of each."""
    batch, loss, gradient = s.shape[1], 0.0, torch.zeros_like(s, dtype=torch.float64)
    for v in range(4):
        for g in range(2):
            if v == g:
                continue
            for b in range(batch):
                p_s = softmax(s[v, b].double().tolist(), 0.1)
                loss -= sum(p * math.log(q) for p, q in zip(p_t[g][b], p_s, strict=True)) / (6 * batch)
                for k in range(K):
                    gradient[v, b, k] += (p_s[k] - p_t[g][b][k]) / 0.1 / (6 * batch)
    return loss, gradient


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_value_and_gradient_are_the_papers(centering: Any) -> None:
    dino = module(centering=centering)
    predictions, targets = outputs()
    s, t = predictions.projections, targets.projections
    if dino.center is not None:
        dino.center.center.uniform_(-0.5, 0.5)
        expected, gradient = paper(s.detach(), centred(t.detach(), dino.center.center))
    else:
        expected, gradient = paper(s.detach(), balanced(t.detach()))
    loss = dino.terms(predictions, targets)["distill"]
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(s.grad, gradient.float(), rtol=1e-4, atol=1e-6)
    assert t.grad is None


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_any_divergence_of_logits(centering: Any) -> None:
    """KL(p_t‖p_s) is the cross-entropy less the teacher's entropy, with the same gradient; of JS the value."""
    predictions, targets = outputs()
    s = predictions.projections
    p_t = balanced(targets.projections) if centering == "sinkhorn" else centred(targets.projections, torch.zeros(1, K))
    entropy = -sum(p * math.log(p) for g in range(2) for b in range(B) for p in p_t[g][b] if p > 0) / (2 * B)
    expected, gradient = paper(s.detach(), p_t)
    loss = module(centering=centering, divergence=KL("teacher_student")).terms(predictions, targets)["distill"]
    loss.backward()
    assert loss.item() == pytest.approx(expected - entropy, rel=1e-4)
    torch.testing.assert_close(s.grad, gradient.float(), rtol=1e-3, atol=1e-6)

    js = 0.0
    for v, g in PAIRS:
        for b in range(B):
            p_s = softmax(s[v, b].double().tolist(), 0.1)
            for p, q in zip(p_s, p_t[g][b], strict=True):
                m = (p + q) / 2
                js += (p * math.log(p / m) + (q * math.log(q / m) if q > 0 else 0)) / 2 / (6 * B)
    value = module(centering=centering, divergence=JS()).terms(predictions, targets)["distill"]
    assert value.item() == pytest.approx(js, rel=1e-4)


def test_the_pairs_are_the_views_in_any_order_of_crops() -> None:
    """A local crop first: the teacher's crops 0 and 1 are then the student's 1 and 2."""
    dino, (predictions, targets) = module(), outputs()
    batch = views()
    turned = Views([batch.crops[2], *batch.crops[:2]], (STUDENT, BOTH, BOTH))
    assert dino.predictions(turned).pairs == ((0, 0), (0, 1), (1, 1), (2, 0))
    s, t = predictions.projections, targets.projections
    loss = dino.terms(Outputs(s[[2, 0, 1]], predictions.features, dino.predictions(turned).pairs), targets)["distill"]
    p_t, expected = centred(t, torch.zeros(1, K)), 0.0
    for v, g in ((2, 0), (2, 1), (0, 1), (1, 0)):
        for b in range(B):
            p_s = softmax(s[v, b].double().tolist(), 0.1)
            expected -= sum(p * math.log(q) for p, q in zip(p_t[g][b], p_s, strict=True)) / (4 * B)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_divergences_own_temperatures_multiply() -> None:
    predictions, targets = outputs()
    own = module(divergence=CrossEntropy(0.5, 2.0)).terms(predictions, targets)["distill"]
    plain = module(student_temperature=0.05, teacher_temperature=2 * TAU_T).terms(predictions, targets)["distill"]
    torch.testing.assert_close(own, plain)


def test_the_center_follows_once_a_step_after_the_loss() -> None:
    dino = module()
    assert dino.center is not None
    predictions, targets = outputs()
    before = dino.terms(predictions, targets)["distill"]
    dino.observe(predictions, targets)
    assert torch.equal(dino.terms(predictions, targets)["distill"], before)
    other = outputs(batch=3)
    dino.observe(*other)
    dino.center.commit()
    rows = torch.cat([targets.projections.flatten(0, 1), other[1].projections.flatten(0, 1)])
    torch.testing.assert_close(dino.center.center, 0.1 * rows.detach().mean(0, keepdim=True))
    assert not torch.equal(dino.terms(predictions, targets)["distill"], before)
    assert "center.center" in dino.state_dict()
    dino.eval()
    dino.observe(predictions, targets)
    kept = dino.center.center.clone()
    dino.center.commit()
    assert torch.equal(dino.center.center, kept)


def test_sinkhorn_keeps_no_state() -> None:
    dino = module(centering="sinkhorn")
    dino.observe(*outputs())
    assert dino.center is None
    assert not [name for name in dino.state_dict() if name.startswith("center")]


@pytest.mark.parametrize(("epoch", "temperature"), [(0, 0.04), (15, 0.055), (30, 0.07), (200, 0.07)])
def test_the_teachers_temperature_warms_up(epoch: int, temperature: float) -> None:
    clock = Clock(step=epoch * 10, total_steps=3000, steps_per_epoch=10)
    assert module().teacher_temperature(clock) == pytest.approx(temperature)


def test_the_student_sees_all_crops_and_each_resolution_once() -> None:
    dino, batch = module(), views()
    calls: list[str] = []
    for name in ("student", "teacher"):
        tower = getattr(dino, name)
        tower.backbone.register_forward_hook(lambda *_, name=name: calls.append(f"{name}.backbone"))
        tower.head.register_forward_hook(lambda *_, name=name: calls.append(f"{name}.head"))
    predictions, targets = dino.predictions(batch), dino.targets(batch)
    assert sorted(calls) == ["student.backbone"] * 2 + ["student.head", "teacher.backbone", "teacher.head"]
    assert predictions.projections.shape == (4, B, K)
    assert targets.projections.shape == (2, B, K)
    assert predictions.pairs == PAIRS


def test_the_teacher_has_batch_statistics_and_no_drop_path_and_is_evaluated() -> None:
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=2, num_heads=2, num_classes=0, drop_path_rate=0.5
    )
    dino = DINO(vit, hidden_dim=8, bottleneck_dim=4, prototypes=K)
    assert dino.teacher is not None
    rates = [p.drop_prob for p in dino.student.modules() if type(p).__name__ == "DropPath"]
    assert max(rates) == 0.5
    assert all(p.drop_prob == 0 for p in dino.teacher.modules() if type(p).__name__ == "DropPath")
    assert dino.teacher_policy.mode == "train"
    assert dino.teacher_policy.buffer_rule == "own"
    assert dino.evaluated_tower is dino.teacher
    dino.eval()
    images = torch.randn(3, 1, 8, 8)
    # the class token
    expected = dino.teacher.backbone.model.forward_features(images)[:, 0]
    torch.testing.assert_close(dino.embed(images), expected)


def test_gradients_reach_the_student_only() -> None:
    dino, batch = module(), views()
    with torch.no_grad():
        targets = dino.targets(batch)
    dino.terms(dino.predictions(batch), targets)["distill"].backward()
    for name, parameter in dino.named_parameters():
        assert (parameter.grad is not None) is name.startswith("student."), name


@pytest.mark.parametrize(("norm_last_layer", "names"), [(True, ["weight"]), (False, ["weight", "scale"])])
def test_the_last_layer_stands_still_for_an_epoch(norm_last_layer: bool, names: list[str]) -> None:
    dino = module(norm_last_layer=norm_last_layer)
    last = dino.student.head.get_submodule("last_layer")
    roles = dino.parameter_roles()
    assert {id(p) for p in roles["last_layer"]} == {id(getattr(last, name)) for name in names}
    for step, frozen in ((0, True), (9, True), (10, False)):
        for parameter in dino.student.parameters():
            parameter.grad = torch.ones_like(parameter)
        dino.optimizer_recipe.freeze_gradients(roles, Clock(step=step, total_steps=3000, steps_per_epoch=10))
        without = {n for n, p in dino.student.named_parameters() if p.grad is None}
        assert without == ({f"head.last_layer.{name}" for name in names} if frozen else set())


def test_the_recipe_is_the_papers() -> None:
    recipe = module().optimizer_recipe
    assert recipe.scaled_lr(1024) == pytest.approx(2e-3)
    assert (recipe.weight_decay, recipe.weight_decay_end) == (0.04, 0.4)
    assert (recipe.clip, recipe.clip_mode) == (3.0, "parameter")
    schedule = module().teacher_policy.schedule
    assert [schedule(Clock(step, 100)) for step in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])


def test_half_precision_logits_give_a_float32_loss() -> None:
    predictions, targets = outputs()
    for centering in ("center", "sinkhorn"):
        exact = module(centering=centering).terms(predictions, targets)["distill"]
        half = module(centering=centering).terms(
            Outputs(predictions.projections.bfloat16(), predictions.features, PAIRS),
            Outputs(targets.projections.bfloat16(), targets.features),
        )["distill"]
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact.item(), rel=2e-2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"method.centering: 'mean' given, allowed is center or sinkhorn"):
        module(centering="mean")
    with pytest.raises(ValueError, match=r"divergence: L2 given.*choose divergence=cross_entropy, kl"):
        module(divergence=L2())
    with pytest.raises(ValueError, match=r"method.teacher_temperature must be"):
        module(teacher_temperature=0.0)
    assert module(teacher_temperature=LinearSchedule(0.1, 0.2)).teacher_temperature(Clock(1, 2)) == pytest.approx(0.15)


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_logits_in_chunks_give_the_same_loss_and_gradients(centering: Any) -> None:
    batch = views()
    found = []
    for logits in ("whole", "chunks"):
        dino = module(centering=centering, logits=logits)
        targets, predictions = dino.targets(batch), dino.predictions(batch)
        assert predictions.projections.shape == (4, B, K if logits == "whole" else 6)
        assert targets.projections.shape == (2, B, K)
        loss = dino.terms(predictions, targets)["distill"]
        loss.backward()
        gradients = {name: p.grad for name, p in dino.named_parameters() if p.requires_grad}
        found.append((loss.detach(), gradients, dino.answers(predictions, targets)))
    (whole, gradients, answers), (chunks, others, same) = found
    torch.testing.assert_close(chunks, whole)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(same.student, answers.student)


@pytest.mark.parametrize(
    "settings",
    [{"norm_last_layer": False}, {"divergence": JS()}, {"teacher": TeacherPolicy.none()}, {"logits": "some"}],
    ids=["lengths", "divergence", "no teacher", "unknown"],
)
def test_what_chunks_cannot_do_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^method\.logits: "):
        module(**{"logits": "chunks", **settings})
