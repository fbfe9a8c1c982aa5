"""data2vec against the paper's formula, written out."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from selfdistill.methods import Data2Vec, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock
from selfdistill.views import Views
from selfdistill.views.masks import BlockMask, draw_masks

BOTH, STUDENT = frozenset({"teacher", "student"}), frozenset({"student"})
D, B, N = 16, 3, 16


def module(**settings: object) -> Data2Vec:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=D, depth=4, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    return Data2Vec(vit, **({"top_k": 3} | settings))  # type: ignore[arg-type]


def views(crops: int = 1) -> Views:
    torch.manual_seed(1)
    make = BlockMask((4, 4), ratio_range=(0.2, 0.6), probability=1.0, stratified=False)
    masks = draw_masks(make, torch.arange(B), crops, seed=0, epoch=0)
    return Views([torch.randn(B, 1, 8, 8) for _ in range(crops)], (BOTH,) * crops, masks=masks)


def smooth_l1(difference: float) -> float:
    """β = 2."""
    return difference**2 / 4 if abs(difference) < 2 else abs(difference) - 1


def test_value_and_gradient_are_the_papers() -> None:
    data2vec = module()
    student, target = 2 * torch.randn(7, D), torch.randn(7, D, requires_grad=True)
    student.requires_grad_()
    # on both sides of the threshold
    assert 0 < ((student - target).abs() < 2).sum() < 7 * D
    loss = data2vec.terms(Outputs(student, student), Outputs(target.detach(), target))["latent"]
    values = [
        smooth_l1(s - t)
        for row, other in zip(student.tolist(), target.tolist(), strict=True)
        for s, t in zip(row, other, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(values) / (7 * D), rel=1e-5)
    loss.backward()
    assert target.grad is None
    expected = ((student - target) / 2).clamp(-1, 1) / (7 * D)
    torch.testing.assert_close(student.grad, expected.detach())


@pytest.mark.parametrize("crops", [1, 2])
def test_targets_are_the_normalised_mean_of_the_last_layers(crops: int) -> None:
    data2vec, batch = module(), views(crops)
    assert data2vec.teacher is not None
    mask, expected, predicted = batch.masks["mask"], [], []
    with torch.no_grad():
        for crop in range(crops):
            layers = data2vec.teacher.backbone(batch.crops[crop], layers=(1, 2, 3)).layers
            seen = data2vec.student.backbone(batch.crops[crop], mask=mask[crop], mask_token=data2vec.mask_token)
            for image in range(B):
                for patch in range(N):
                    if not mask[crop, image, patch]:
                        continue
                    mean = [sum(float(layer[image, patch, d]) for layer in layers) / 3 for d in range(D)]
                    center = sum(mean) / D
                    deviation = math.sqrt(sum((v - center) ** 2 for v in mean) / D + 1e-5)
                    expected.append([(v - center) / deviation for v in mean])
                    predicted.append(data2vec.regressor(seen.tokens[image, patch]))
        torch.testing.assert_close(data2vec.targets(batch).projections, torch.tensor(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(data2vec.predictions(batch).projections, torch.stack(predicted))


def test_the_regressor_and_the_mask_token_are_the_students_alone() -> None:
    data2vec, batch = module(), views()
    assert data2vec.teacher is not None
    assert {n for n, _ in data2vec.teacher.named_parameters()} == {n for n, _ in data2vec.student.named_parameters()}
    with torch.no_grad():
        targets = data2vec.targets(batch)
    data2vec.terms(data2vec.predictions(batch), targets)["latent"].backward()
    for name, parameter in data2vec.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name
    assert data2vec.mask_token.grad is not None
    assert data2vec.mask_token.grad.any()
    assert data2vec.parameter_roles() == {"predictor": list(data2vec.regressor.parameters())}


def test_declarations() -> None:
    data2vec = module().eval()
    assert data2vec.evaluated_tower is data2vec.teacher
    images = torch.randn(4, 1, 8, 8)
    tokens = data2vec.teacher.backbone(images).tokens  # type: ignore[union-attr]
    torch.testing.assert_close(data2vec.embed(images), sum(tokens[:, n] for n in range(N)) / N)
    assert data2vec.targets(views()).features.shape == (1, B, D)
    assert data2vec.predictions(views()).features.shape == (1, B, D)
    assert data2vec.teacher_policy.mode == "eval"
    assert data2vec.teacher_policy.buffer_rule == "copy"
    momentum = data2vec.teacher_policy.schedule
    assert [momentum(Clock(step, 100)) for step in (0, 50, 100)] == pytest.approx([0.999, 0.9994, 0.9998])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="given to Data2Vec, but it needs patch tokens"):
        Data2Vec(SmallCNN(1, (4, 4, 4, 6)))
    for top_k in (0, 5):
        with pytest.raises(ValueError, match=rf"method.top_k: {top_k} given, allowed is 1 to the backbone's 4 blocks"):
            module(top_k=top_k)
    masks = views().masks
    crossed = Views([torch.randn(B, 1, 8, 8)] * 2, (frozenset({"teacher"}), STUDENT), masks=masks)
    with pytest.raises(ValueError, match="the teacher sees 1 crops, and 1 of the student's are masked"):
        module().targets(crossed)
