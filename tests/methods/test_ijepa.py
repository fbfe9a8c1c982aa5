"""I-JEPA against the paper's formula, written out."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from selfdistill.methods import IJEPA, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock
from selfdistill.views import Views
from selfdistill.views.masks import MultiBlockMask, draw_masks

BOTH, STUDENT = frozenset({"teacher", "student"}), frozenset({"student"})
D, B = 16, 3


def module() -> IJEPA:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=D, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    return IJEPA(vit, image_size=8, predictor_width=8, predictor_depth=2, predictor_heads=2)


def views(crops: int = 1) -> Views:
    torch.manual_seed(1)
    masks = draw_masks(MultiBlockMask((4, 4), targets=3, min_keep=3), torch.arange(B), crops, seed=0, epoch=0)
    return Views([torch.randn(B, 1, 8, 8) for _ in range(crops)], (BOTH,) * crops, masks=masks)


def test_value_and_gradient_are_the_papers() -> None:
    ijepa = module()
    predicted, target = torch.randn(B, 3, 2, D, requires_grad=True), torch.randn(B, 3, 2, D)
    difference = (predicted - target).detach()
    assert 0 < (difference.abs() < 1).sum() < difference.numel()
    loss = ijepa.terms(Outputs(predicted, predicted), Outputs(target, target))["latent"]
    values = [d * d / 2 if abs(d) < 1 else abs(d) - 0.5 for d in difference.flatten().tolist()]
    assert loss.item() == pytest.approx(sum(values) / len(values), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(predicted.grad, difference.clamp(-1, 1) / difference.numel())


@pytest.mark.parametrize("crops", [1, 2])
def test_targets_are_normalised_patches_of_the_whole_image(crops: int) -> None:
    ijepa, batch = module(), views(crops)
    assert ijepa.teacher is not None
    wanted = batch.masks["targets"]
    # the network ends in a norm of its own, which would hide a missing one as long as its weight is 1
    torch.nn.init.normal_(ijepa.teacher.backbone.model.norm.weight)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        targets = ijepa.targets(batch).projections
        assert targets.shape == (*wanted.shape, D)
        for row in range(crops * B):
            tokens = ijepa.teacher.backbone(batch.crops[row // B]).tokens[row % B]
            for block in range(3):
                for place, patch in enumerate(wanted[row, block].tolist()):
                    values = tokens[patch].tolist()
                    mean = sum(values) / D
                    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / D + 1e-5)
                    expected = torch.tensor([(v - mean) / deviation for v in values])
                    torch.testing.assert_close(targets[row, block, place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crops", [1, 2])
def test_the_student_sees_the_context_alone(crops: int) -> None:
    ijepa, batch = module().eval(), views(crops)
    context, wanted = batch.masks["context"], batch.masks["targets"]
    with torch.no_grad():
        predicted = ijepa.predictions(batch).projections
        for crop in range(crops):
            rows = slice(crop * B, (crop + 1) * B)
            seen = ijepa.student.backbone(batch.crops[crop], keep=context[rows]).tokens
            torch.testing.assert_close(predicted[rows], ijepa.predictor(seen, context[rows], wanted[rows]))
        for image in range(B):
            hidden = sorted(set(range(16)) - set(context[image].tolist()))
            for patch in hidden:
                row, column = divmod(patch, 4)
                batch.crops[0][image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 9.0
        torch.testing.assert_close(ijepa.predictions(batch).projections, predicted)


def test_the_mean_of_the_patches_is_evaluated() -> None:
    ijepa = module().eval()
    assert ijepa.evaluated_tower is ijepa.teacher
    images = torch.randn(4, 1, 8, 8)
    tokens = ijepa.teacher.backbone(images).tokens  # type: ignore[union-attr]
    torch.testing.assert_close(ijepa.embed(images), sum(tokens[:, n] for n in range(16)) / 16)
    assert ijepa.targets(views()).features.shape == (1, B, D)
    assert ijepa.predictions(views()).features.shape == (1, B, D)


def test_gradients_reach_student_and_predictor_only() -> None:
    ijepa, batch = module(), views()
    with torch.no_grad():
        targets = ijepa.targets(batch)
    ijepa.terms(ijepa.predictions(batch), targets)["latent"].backward()
    for name, parameter in ijepa.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name
    assert ijepa.parameter_roles() == {"predictor": list(ijepa.predictor.parameters())}


def test_the_teacher_keeps_train_mode_and_a_linear_momentum() -> None:
    policy = module().teacher_policy
    assert policy.mode == "train"
    assert [policy.schedule(Clock(step, 100)) for step in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="given to IJEPA, but it needs patch tokens"):
        IJEPA(SmallCNN(1, (4, 4, 4, 6)))
    crossed = Views([torch.randn(B, 1, 8, 8)] * 2, (frozenset({"teacher"}), STUDENT), masks=views().masks)
    with pytest.raises(ValueError, match="the teacher sees 1 crops, and 1 of the student's are masked"):
        module().targets(crossed)
