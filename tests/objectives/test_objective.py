"""What an objective may ask for, and what refuses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfdistill.methods import BYOL, IJEPA, SimSiam
from selfdistill.networks import SmallCNN
from selfdistill.objectives import (
    Clustering,
    Contrastive,
    MaskedPixels,
    MaskedTokens,
    MeMax,
    Objective,
    VarianceCovariance,
)
from selfdistill.objectives.base import mean_where


def byol(objective: Objective) -> None:
    BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, objectives={"extra": objective})


def simsiam(objective: Objective) -> None:
    SimSiam(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, predictor_dim=4, objectives={"extra": objective})


def ijepa(objective: Objective) -> None:
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=1, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    IJEPA(
        vit,
        image_size=8,
        predictor_width=8,
        predictor_depth=1,
        predictor_heads=2,
        objectives={"extra": objective},
    )


@pytest.mark.parametrize(
    ("build", "objective", "says"),
    [
        (simsiam, Contrastive(), r"objective\.contrastive: no teacher given.*choose teacher=ema"),
        (simsiam, Clustering(), r"objective\.clustering: no teacher given.*choose teacher=ema"),
        (
            byol,
            MaskedTokens(),
            r"backbone: SmallCNN given to objective\.masked_tokens, but it needs patch tokens",
        ),
        (
            byol,
            MaskedPixels(),
            r"backbone: SmallCNN given to objective\.masked_pixels, but it needs patch tokens",
        ),
        (ijepa, Contrastive(), r"objective\.contrastive: IJEPA given, which does not project whole images; choose"),
        (ijepa, VarianceCovariance(), r"objective\.variance_covariance: IJEPA given"),
        (ijepa, MeMax(), r"objective\.me_max: IJEPA given"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(build: Any, objective: Objective, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        build(objective)
    assert "\n" not in str(error.value)


def test_parameters_belong_to_the_module() -> None:
    module = BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, objectives={"clusters": Clustering(prototypes=4)})
    assert "objectives.clusters.prototypes.weight" in module.state_dict()
    assert "objectives.clusters.prototypes.weight" in dict(module.trained_parameters())
    # attaching must not make the module a part of its own part
    assert sum(p is module.student.head for p in module.modules()) == 1


def test_mean_where() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    mean = mean_where(values, torch.tensor([True, False, True, False]))
    assert mean.item() == 2.5
    mean.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0, 0.5, 0]
    assert mean_where(values, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_mean_where_averages_to_the_mean_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank has chosen one value, the other three."""
    values, chosen = (
        torch.arange(8.0).view(2, 4),
        torch.tensor([[True, False, False, False], [True, True, False, True]]),
    )
    monkeypatch.setattr("selfdistill.objectives.base.world_size", lambda: 2)
    monkeypatch.setattr("selfdistill.objectives.base.all_reduce_sum", lambda _: torch.tensor(4.0))
    ranks = [mean_where(v, c) for v, c in zip(values, chosen, strict=True)]
    assert sum(ranks) / 2 == values[chosen].mean()
