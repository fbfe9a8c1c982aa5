"""Measures of a step against the functions and formulas that they stand for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_ranks import on_two_ranks

from selfdistill.callbacks.collapse_measures import GradientSignal, evaluated_features, measure
from selfdistill.evaluation.geometry import (
    alignment,
    effective_rank,
    feature_std,
    mean_cosine,
    parameter_distance,
    prototype_entropy,
    rankme,
    uniformity,
)
from selfdistill.methods import DINO, MSN, Outputs, SwAV
from selfdistill.methods.swav import SwAVOutputs
from selfdistill.networks import SmallCNN, build_backbone
from selfdistill.views import Views

BOTH = frozenset({"teacher", "student"})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pair(nn.Module):
    """Somebody's module with two networks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2)


def step(views: int = 2, batch: int = 20) -> dict[str, Any]:
    pairs = ((0, 1), (1, 0)) if views > 1 else ((0, 0),)
    student = Outputs(random(views, batch, 5, seed=1), random(views, batch, 4, seed=2), pairs)
    return {"student": student, "teacher": Outputs(random(views, batch, 5, seed=3), random(views, batch, 4, seed=4))}


def test_each_name_is_its_function_of_what_the_step_returned() -> None:
    outputs, module = step(), Pair()
    batch = Views([torch.zeros(20, 1, 2, 2)] * 2, (BOTH, BOTH))
    x = outputs["student"].features
    found = measure(module, outputs, batch, x, rows=1000, extra={"loss": torch.tensor(3.0)})
    rows = x.flatten(0, 1)
    wanted = {
        "loss": torch.tensor(3.0),
        "std": feature_std(rows),
        "rank": effective_rank(rows),
        "rank_ratio": effective_rank(rows) / 4,
        "rankme": rankme(rows),
        "cosine": mean_cosine(rows),
        "uniformity": uniformity(rows),
        "projection_std": feature_std(outputs["student"].projections.flatten(0, 1)),
        "projection_rank": effective_rank(outputs["student"].projections.flatten(0, 1)),
        "alignment": alignment(x[0], x[1]),
        "agreement": torch.cosine_similarity(x, outputs["teacher"].features, dim=-1).mean(),
        "teacher_distance": parameter_distance(module.teacher.parameters(), module.student.parameters()),
    }
    assert found == pytest.approx({name: float(value) for name, value in wanted.items()}, rel=1e-5)


def test_one_view_each_is_aligned_and_compared_across_the_networks() -> None:
    outputs = step(views=1)
    one, other = outputs["student"].features[0], outputs["teacher"].features[0]
    found = measure(Pair(), outputs, None, outputs["student"].features, rows=1000, extra={})
    assert found["alignment"] == pytest.approx(float(alignment(one, other)), rel=1e-5)
    assert found["agreement"] == pytest.approx(float(torch.cosine_similarity(one, other).mean()), rel=1e-5)


def test_many_rows_are_thinned_to_the_same_images_of_every_view() -> None:
    outputs = step(batch=40)
    x = outputs["student"].features
    found = measure(nn.Module(), outputs, None, x, rows=20, extra={})
    assert found["rank"] == pytest.approx(float(effective_rank(x[:, :10].flatten(0, 1))), rel=1e-5)
    flat = measure(nn.Module(), {}, None, x[0], rows=20, extra={})
    assert flat["rank"] == pytest.approx(float(effective_rank(x[0, ::2])), rel=1e-5)


@pytest.mark.parametrize("outputs", [None, torch.tensor(1.0), {}, {"student": None}, {"student": torch.zeros(3, 2)}])
def test_steps_without_features_have_none(outputs: Any) -> None:
    assert evaluated_features(nn.Module(), outputs) is None


def test_features_are_those_of_the_evaluated_network() -> None:
    outputs, module = step(), nn.Module()
    assert evaluated_features(module, outputs) is outputs["student"].features
    module.evaluates = "teacher"  # type: ignore[assignment]
    assert evaluated_features(module, outputs) is outputs["teacher"].features
    assert evaluated_features(module, {**outputs, "teacher": None}) is outputs["student"].features


def dino_step() -> tuple[DINO, dict[str, Any]]:
    torch.manual_seed(0)
    dino = DINO(SmallCNN(1, (4, 4, 4, 4)), hidden_dim=8, bottleneck_dim=6, prototypes=7, teacher_temperature=0.05)
    assert dino.center is not None
    dino.center.center.copy_(random(1, 7, seed=9))
    student = Outputs(random(3, 6, 7, seed=1), random(3, 6, 4), ((0, 1), (1, 0), (2, 0), (2, 1)))
    return dino, {"student": student, "teacher": Outputs(random(2, 6, 7, seed=2), random(2, 6, 4))}


def test_answers_are_taken_at_the_temperatures_of_the_loss_and_centered() -> None:
    dino, outputs = dino_step()
    found = measure(dino, outputs, None, outputs["teacher"].features, rows=1000, extra={})
    assert dino.center is not None
    s, t = outputs["student"].projections / 0.1, (outputs["teacher"].projections - dino.center.center) / 0.05
    full = math.log(7)
    for name, logits in (("prototype", s), ("target", t)):
        both = prototype_entropy(logits)
        information = float(both.mean_entropy - both.entropy_mean) / full
        assert found[f"{name}_entropy"] == pytest.approx(float(both.mean_entropy) / full, rel=1e-5)
        assert found[f"{name}_sharpness"] == pytest.approx(1 - float(both.entropy_mean) / full, rel=1e-4, abs=1e-6)
        assert found[f"{name}_information"] == pytest.approx(information, rel=1e-4)
    # what is taken apart adds up to the loss
    loss = dino.terms(outputs["student"], outputs["teacher"])["distill"]
    assert found["kl"] + found["target_entropy_nats"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("method", ["swav", "msn"])
def test_codes_and_scores_add_up_to_the_loss(method: str) -> None:
    torch.manual_seed(0)
    if method == "swav":
        module: Any = SwAV(SmallCNN(1, (4, 4, 4, 4)), hidden_dim=8, out_dim=6, prototypes=7)
        term, targets = "cluster", None
        student: Outputs = SwAVOutputs(random(2, 6, 6), random(2, 6, 4), ((0, 1), (1, 0)), (0, 1))
    else:
        backbone = build_backbone("small_vit", channels=1, image_size=8, patch_size=2)
        module = MSN(backbone, hidden_dim=8, out_dim=6, prototypes=7)
        term, targets = "cluster", Outputs(random(1, 6, 6, seed=3), random(1, 6, 4))
        student = Outputs(random(2, 6, 6), random(2, 6, 4), ((0, 0), (1, 0)))
    outputs = {"student": student, "teacher": targets}
    found = measure(module, outputs, None, student.features, rows=1000, extra={})
    loss = module.terms(student, targets)[term].detach()
    assert found["kl"] + found["target_entropy_nats"] == pytest.approx(float(loss), rel=1e-5)


def test_gradient_signal_is_the_cosine_of_two_steps() -> None:
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    signal, steps = GradientSignal(), [[random(3, 2, seed=s), random(4, seed=s + 10)] for s in range(3)]
    for i, gradients in enumerate(steps):
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = gradient
        signal.observe(parameters, keep=i == 1, compare=i == 2)
    before, now = (torch.cat([g.flatten() for g in gradients]) for gradients in steps[1:])
    assert float(signal.measures["gradient_norm"]) == pytest.approx(float(now.norm()), rel=1e-6)
    assert float(signal.measures["gradient_signal"]) == pytest.approx(
        float(torch.cosine_similarity(before, now, dim=0)), rel=1e-5
    )


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_gradient_signal_estimates_the_share_of_the_mean_gradient(noise: float) -> None:
    """‖G‖² / E‖g‖² = 1 / (1 + noise²) with noise of the same length as G."""
    parameter, signal, found = nn.Parameter(torch.zeros(5000)), GradientSignal(), []
    for i in range(20):
        parameter.grad = torch.ones(5000) + noise * random(5000, seed=i)
        signal.observe([parameter], keep=True, compare=i > 0)
        found += [float(signal.measures["gradient_signal"])] if i else []
    assert sum(found) / len(found) == pytest.approx(1 / (1 + noise**2), abs=0.02)


def measured(rank: int | None) -> dict[str, float]:
    """The measures of a step whose images are dealt out to two processes; None, all to one."""
    outputs = step(batch=20)
    mine = slice(None) if rank is None else slice(rank, None, 2)
    cut = {k: Outputs(v.projections[:, mine], v.features[:, mine], v.pairs) for k, v in outputs.items()}
    return measure(Pair(), cut, None, cut["student"].features, rows=1000, extra={})


def test_ranks_agree_and_measure_what_one_process_would(tmp_path: Path) -> None:
    first, second = on_two_ranks(measured, tmp_path)
    assert first == second
    alone = measured(None)
    for name in ("std", "rank", "rankme", "cosine", "uniformity", "projection_rank", "alignment", "agreement"):
        assert first[name] == pytest.approx(alone[name], rel=1e-5), name
