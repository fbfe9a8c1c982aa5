"""Cross-entropy on what is labelled, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import BYOL, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.objectives import Supervised

LABELS = [2, -1, 0, 1, -1, -1, 2]


def attached() -> Supervised:
    torch.manual_seed(0)
    objective = Supervised(classes=3)
    BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, objectives={"supervised": objective})
    return objective


def slow(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    losses = []
    for crop in features:
        for x, label in zip(crop, LABELS, strict=True):
            if label >= 0:
                scores = torch.exp(torch.stack([w @ x + b for w, b in zip(weight, bias, strict=True)]))
                losses.append(-torch.log(scores[label] / scores.sum()))
    return sum(losses) / len(losses)  # type: ignore[return-value]


def test_value_and_gradient(multicrop: Any, clocked: Any, same: Any) -> None:
    objective = attached()
    views, classifier = multicrop(labels=torch.tensor(LABELS)), objective.classifier
    parameters = [classifier.weight.detach().clone(), classifier.bias.detach().clone()]

    def ours(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        del classifier.weight, classifier.bias
        classifier.weight, classifier.bias = weight, bias  # type: ignore[assignment]
        return objective.terms(clocked, views, Outputs(features, features), None)["supervised"]

    same(ours, slow, [torch.randn(3, 7, 6), *parameters])


def test_without_a_labelled_image_it_is_zero_and_so_is_every_gradient(multicrop: Any, clocked: Any) -> None:
    objective = attached()
    features = torch.randn(3, 7, 6, requires_grad=True)
    views = multicrop(labels=torch.full((7,), -1))
    loss = objective.terms(clocked, views, Outputs(features, features), None)["supervised"]
    loss.backward()
    assert loss.item() == 0
    for tensor in (features, *objective.parameters()):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_what_cannot_be_learned_from_is_refused(multicrop: Any, clocked: Any) -> None:
    with pytest.raises(ValueError, match=r"objective\.supervised: views without labels"):
        attached().terms(clocked, multicrop(), Outputs(torch.zeros(3, 7, 6), torch.zeros(3, 7, 6)), None)
    for classes in (None, 1):
        with pytest.raises(ValueError, match=rf"objective\.supervised\.classes: {classes} given"):
            Supervised(classes)
