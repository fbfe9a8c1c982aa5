"""What the constructor refuses, whoever calls it, and what a method inherits that declares nothing."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from selfdistill.compatibility import Accepts, refuse_divergence
from selfdistill.divergences import Cosine
from selfdistill.heads import MLP, NoHead
from selfdistill.methods import BYOL, DINO, IBOT, MSN, MoCo, SelfDistillModule
from selfdistill.networks import SmallCNN, Tower, build_backbone
from selfdistill.objectives import MeMax
from selfdistill.optim import OptimizerRecipe
from selfdistill.teacher import TeacherPolicy


def cnn() -> SmallCNN:
    return SmallCNN(1, (4, 4, 4, 6))


def vit() -> Any:
    return build_backbone("small_vit", channels=1, image_size=8, patch_size=2)


class Plain(SelfDistillModule[Any, Any]):
    def targets(self, views: Any) -> Any: ...
    def predictions(self, views: Any) -> Any: ...
    def terms(self, predictions: Any, targets: Any) -> dict[str, Tensor]:
        return {}


def plain(**parts: Any) -> Plain:
    tower = Tower(cnn(), MLP(6, 8, 5))
    return Plain(tower, optimizer=OptimizerRecipe("sgd", 0.1), **{"teacher": TeacherPolicy.ema(0.9)} | parts)


def test_a_method_that_declares_nothing_takes_anything() -> None:
    assert Plain.accepts == Accepts()
    assert not hasattr(plain(), "divergence")
    assert plain(teacher=TeacherPolicy.none(), divergence=Cosine()).divergence.domain == "features"
    assert plain(divergence=lambda s, t: (s - t).abs().sum(-1)).divergence.domain == "logits"


def test_what_has_no_projection_is_found_without_being_declared() -> None:
    module = Plain(Tower(cnn(), NoHead()), optimizer=OptimizerRecipe("sgd", 0.1), teacher=TeacherPolicy.ema(0.9))
    assert module.accepts.projects
    with pytest.raises(ValueError, match=r"objective\.me_max: Plain given, which does not project whole images"):
        Plain(
            Tower(cnn(), NoHead()),
            optimizer=OptimizerRecipe("sgd", 0.1),
            teacher=TeacherPolicy.ema(0.9),
            objectives={"me_max": MeMax()},
        )


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: DINO(cnn(), prototypes=8, divergence=Cosine()), "divergence: Cosine given to DINO, but it compares"),
        (lambda: MoCo(cnn(), queue_length=8, teacher=TeacherPolicy.none()), "teacher: none given to MoCo"),
        (lambda: IBOT(cnn(), prototypes=8), "backbone: SmallCNN given to IBOT"),
        (
            lambda: IBOT(
                vit(),
                prototypes=8,
                teacher=TeacherPolicy.frozen(BYOL(cnn(), hidden_dim=8, out_dim=5).student),
            ),
            "teacher.network: SmallCNN given to IBOT",
        ),
        (lambda: MSN(vit(), objectives={"extra": MeMax()}), "objective.me_max: me_max given to MSN, but it has"),
        (lambda: refuse_divergence("MoCo", "Cosine"), "divergence: Cosine given to MoCo, but its loss is fixed"),
    ],
)
def test_refuses_in_one_line(build: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert "; choose " in str(caught.value)
