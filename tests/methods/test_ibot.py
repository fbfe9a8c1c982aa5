"""iBOT against the paper's formula, written out."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfdistill.methods import IBOT
from selfdistill.methods.ibot import IBOTTargets
from selfdistill.methods.patches import PatchOutputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock
from selfdistill.views import Views
from selfdistill.views.masks import BlockMask, draw_masks

BOTH, STUDENT = frozenset({"teacher", "student"}), frozenset({"student"})
K, N = 6, 16


def module(**settings: object) -> IBOT:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    return IBOT(vit, hidden_dim=8, bottleneck_dim=5, prototypes=K, **settings)  # type: ignore[arg-type]


def views(batch: int = 5, local: int = 2) -> Views:
    torch.manual_seed(1)
    crops = [torch.randn(batch, 1, 8, 8) for _ in range(2)] + [torch.randn(batch, 1, 4, 4) for _ in range(local)]
    masks = draw_masks(BlockMask((4, 4), stratified=False), torch.arange(batch), 2, seed=0, epoch=0)
    return Views(crops, (BOTH, BOTH, *[STUDENT] * local), masks=masks)


def softmax(x: list[float], temperature: float) -> list[float]:
    e = [math.exp((v - max(x)) / temperature) for v in x]
    return [v / sum(e) for v in e]


def cross_entropy(student: Tensor, teacher: Tensor, center: Tensor, temperature: float) -> float:
    p = softmax((teacher - center).tolist(), temperature)
    return -sum(a * math.log(b) for a, b in zip(p, softmax(student.tolist(), 0.1), strict=True))


def test_value_and_gradient_are_the_papers() -> None:
    ibot, batch = module(), views()
    mask = batch.masks["mask"]
    count = int(mask.sum())
    assert 0 < (mask.sum(-1) == 0).sum() < 10, "images with and without masks"
    ibot.center.center.copy_(0.1 * torch.randn(1, K))
    ibot.patch_center.center.copy_(0.1 * torch.randn(1, K))
    student, patches = torch.randn(4, 5, K, requires_grad=True), torch.randn(count, K, requires_grad=True)
    teacher, teacher_patches = torch.randn(2, 5, K), torch.randn(count, K)
    # 15 of the 30 epochs in which τ_t grows
    ibot.clock = Clock(step=150, total_steps=1000, steps_per_epoch=10)
    predictions = PatchOutputs(student, student, batch.pairs, patches=patches, weight=batch.masks["masked_weight"])
    targets = IBOTTargets(teacher, teacher, patches=teacher_patches, patch_means=torch.zeros(10, K))
    terms = ibot.terms(predictions, targets)

    cls = [
        cross_entropy(student[v, b], teacher[g, b], ibot.center.center[0], 0.055)
        for g in range(2)
        for v in range(4)
        for b in range(5)
        if v != g
    ]
    assert len(cls) == 2 * 3 * 5
    assert terms["cls"].item() == pytest.approx(sum(cls) / len(cls), rel=1e-5)

    total, row = 0.0, 0
    for crop in range(2):
        for image in range(5):
            losses = []
            for patch in range(N):
                if mask[crop, image, patch]:
                    losses.append(cross_entropy(patches[row], teacher_patches[row], ibot.patch_center.center[0], 0.055))
                    row += 1
            total += sum(losses) / max(len(losses), 1)
    assert terms["patch"].item() == pytest.approx(total / 5 / 2, rel=1e-5)

    (terms["cls"] + terms["patch"]).backward()
    for v in range(4):
        others = [g for g in range(2) if g != v]
        target = sum(torch.softmax((teacher[g] - ibot.center.center) / 0.055, -1) for g in others)
        expected = (len(others) * torch.softmax(student[v] / 0.1, -1) - target) / 0.1 / len(cls)
        torch.testing.assert_close(student.grad[v], expected.detach(), rtol=1e-4, atol=1e-6)  # type: ignore[index]
    target = torch.softmax((teacher_patches - ibot.patch_center.center) / 0.055, -1)
    weight = batch.masks["masked_weight"][:, None]
    expected = (torch.softmax(patches / 0.1, -1) - target) * weight / 0.1 / 10
    torch.testing.assert_close(patches.grad, expected.detach(), rtol=1e-4, atol=1e-6)


def test_the_student_sees_masks_and_the_teacher_does_not() -> None:
    ibot, batch = module().eval(), views()
    assert ibot.teacher is not None
    torch.nn.init.ones_(ibot.mask_token)
    with torch.no_grad():
        predictions, targets = ibot.predictions(batch), ibot.targets(batch)
        mask = batch.masks["mask"]
        row = 0
        for crop in range(2):
            seen = ibot.student.backbone(batch.crops[crop], mask=mask[crop], mask_token=ibot.mask_token)
            whole = ibot.teacher.backbone(batch.crops[crop])
            torch.testing.assert_close(predictions.projections[crop], ibot.student.head.head(seen.pooled))
            torch.testing.assert_close(targets.projections[crop], ibot.teacher.head.head(whole.pooled))
            for image in range(5):
                means = ibot.teacher.head.head(whole.tokens[image]).mean(0)
                torch.testing.assert_close(targets.patch_means[crop * 5 + image], means)
                for patch in range(N):
                    if mask[crop, image, patch]:
                        mine = ibot.student.head.head(seen.tokens[image, patch])
                        its = ibot.teacher.head.head(whole.tokens[image, patch])
                        torch.testing.assert_close(predictions.patches[row], mine)
                        torch.testing.assert_close(targets.patches[row], its)
                        row += 1
        local = ibot.student.backbone(batch.crops[2])
        torch.testing.assert_close(predictions.projections[2], ibot.student.head.head(local.pooled))
    assert row == len(predictions.patches) == len(targets.patches)


def test_centers_are_of_class_tokens_and_of_all_patches() -> None:
    ibot, batch = module(), views()
    assert ibot.teacher is not None
    with torch.no_grad():
        targets, predictions = ibot.targets(batch), ibot.predictions(batch)
        before = ibot.terms(predictions, targets)
        ibot.observe(predictions, targets)
        assert not ibot.center.center.any()
        assert ibot.terms(predictions, targets) == before, "what is observed counts from the next step on"
        ibot.center.commit()
        ibot.patch_center.commit()
        whole = [ibot.teacher.backbone(crop) for crop in batch.teacher]
        cls = torch.cat([ibot.teacher.head.head(features.pooled) for features in whole])
        patches = torch.cat([ibot.teacher.head.head(features.tokens).flatten(0, 1) for features in whole])
    torch.testing.assert_close(ibot.center.center[0], 0.1 * cls.mean(0))
    torch.testing.assert_close(ibot.patch_center.center[0], 0.1 * patches.mean(0))


def test_gradients_reach_the_student_and_its_mask_token_only() -> None:
    ibot, batch = module(patch_prototypes=4), views()
    with torch.no_grad():
        targets = ibot.targets(batch)
    sum(ibot.terms(ibot.predictions(batch), targets).values()).backward()  # type: ignore[union-attr]
    for name, parameter in ibot.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name
    assert ibot.mask_token.grad is not None
    assert ibot.mask_token.grad.any()
    assert ibot.patch_center.dim == 4


def test_a_batch_without_a_masked_patch_still_has_all_gradients() -> None:
    ibot, batch = module(), views()
    batch.masks = draw_masks(BlockMask((4, 4), probability=0.0), torch.arange(5), 2, seed=0, epoch=0)
    with torch.no_grad():
        targets = ibot.targets(batch)
    terms = ibot.terms(ibot.predictions(batch), targets)
    assert terms["patch"].item() == 0.0
    (terms["cls"] + terms["patch"]).backward()
    for name, parameter in ibot.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name


def test_declarations() -> None:
    ibot = module(patch_prototypes=4, norm_last_layer=False)
    assert ibot.evaluated_tower is ibot.teacher
    assert ibot.teacher_policy.mode == "train"
    names = {name for name, p in ibot.named_parameters() for q in ibot.parameter_roles()["last_layer"] if p is q}
    heads = ("student.head.head.last_layer", "student.head.patch_head.last_layer")
    assert names == {f"{head}.{name}" for head in heads for name in ("weight", "scale")}
    temperature = ibot.patch_temperature
    assert [temperature(Clock(step, 100, 1)) for step in (0, 30, 99)] == pytest.approx([0.04, 0.07, 0.07])


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"backbone: SmallCNN given to IBOT, but it needs patch tokens"):
        IBOT(SmallCNN(1, (4, 4, 4, 6)))
    ibot = module()
    plain = Views([torch.randn(2, 1, 8, 8)] * 2, (BOTH, BOTH))
    with pytest.raises(ValueError, match="needs the masks 'mask', the recipe makes none; choose views"):
        ibot.targets(plain)
    masks = draw_masks(BlockMask((4, 4)), torch.arange(2), 2, seed=0, epoch=0)
    crossed = Views([torch.randn(2, 1, 8, 8)] * 3, (frozenset({"teacher"}), STUDENT, STUDENT), masks=masks)
    with pytest.raises(ValueError, match="the teacher sees 1 crops, and 2 of the student's are masked"):
        ibot.targets(crossed)
