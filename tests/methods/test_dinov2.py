"""DINOv2 against its published loss, written out."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfdistill.methods import DINOv2
from selfdistill.methods.patches import PatchOutputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import ConstantSchedule
from selfdistill.views import Views
from selfdistill.views.masks import BlockMask, draw_masks

BOTH, STUDENT = frozenset({"teacher", "student"}), frozenset({"student"})
K, B, T = 6, 5, 0.04


def module(**settings: object) -> DINOv2:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    return DINOv2(vit, hidden_dim=8, bottleneck_dim=5, prototypes=K, **settings)  # type: ignore[arg-type]


def views() -> Views:
    torch.manual_seed(1)
    crops = [torch.randn(B, 1, 8, 8) for _ in range(2)] + [torch.randn(B, 1, 4, 4) for _ in range(2)]
    masks = draw_masks(BlockMask((4, 4)), torch.arange(B), 2, seed=0, epoch=0)
    return Views(crops, (BOTH, BOTH, STUDENT, STUDENT), masks=masks)


def softmax(x: list[float], temperature: float) -> list[float]:
    e = [math.exp((v - max(x)) / temperature) for v in x]
    return [v / sum(e) for v in e]


def cross_entropy(p: list[float], student: Tensor) -> float:
    return -sum(a * math.log(b) for a, b in zip(p, softmax(student.tolist(), 0.1), strict=True))


def slow_sinkhorn(scores: Tensor) -> list[list[float]]:
    """Three rounds: columns to equal mass, rows to mass 1."""
    q = [[math.exp(v / T) for v in row] for row in scores.tolist()]
    for _ in range(3):
        columns = [sum(row[k] for row in q) for k in range(K)]
        q = [[v / columns[k] for k, v in enumerate(row)] for row in q]
        q = [[v / sum(row) for v in row] for row in q]
    return q


def slow_koleo(x: Tensor) -> float:
    unit = [(row / row.norm()).tolist() for row in x]
    nearest = [min(math.dist(a, b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    return -sum(math.log(d + 1e-8) for d in nearest) / len(unit)


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_value_and_gradient_are_the_papers(centering: str) -> None:
    dinov2, batch = module(centering=centering), views()
    mask, weight = batch.masks["mask"], batch.masks["masked_weight"]
    count = int(mask.sum())
    student, patches = torch.randn(4, B, K, requires_grad=True), torch.randn(count, K, requires_grad=True)
    features = torch.randn(4, B, 7, requires_grad=True)
    teacher, teacher_patches = torch.rand(2, B, K), torch.rand(count, K)
    if centering == "center":
        assert dinov2.center is not None
        assert dinov2.patch_center is not None
        dinov2.center.center.copy_(0.1 * torch.randn(1, K))
        dinov2.patch_center.center.copy_(0.1 * torch.randn(1, K))
        p = [softmax((row - dinov2.center.center[0]).tolist(), T) for row in teacher.flatten(0, 1)]
        p_patch = [softmax((row - dinov2.patch_center.center[0]).tolist(), T) for row in teacher_patches]
    else:
        assert dinov2.center is None
        p, p_patch = slow_sinkhorn(teacher.flatten(0, 1)), slow_sinkhorn(teacher_patches)
    predictions = PatchOutputs(student, features, batch.pairs, patches=patches, weight=weight)
    terms = dinov2.terms(predictions, PatchOutputs(teacher, teacher, patches=teacher_patches, weight=weight))

    # the authors' way: sums over pairs over 2·2 local and 2 global terms, the global one once for both and twice
    # as heavy; the patches' weight twice over two crops
    terms_in_all = 2 * 2 + 2
    local = sum(sum(cross_entropy(p[g * B + b], student[v, b]) for b in range(B)) / B for v in (2, 3) for g in range(2))
    swapped = sum(cross_entropy(p[g * B + b], student[1 - g, b]) for g in range(2) for b in range(B)) / (2 * B)
    assert terms["cls"].item() == pytest.approx(local / terms_in_all + 2 * swapped / terms_in_all, rel=1e-4)
    masked = sum(cross_entropy(p_patch[m], patches[m]) * float(weight[m]) for m in range(count))
    assert terms["patch"].item() == pytest.approx(2 * (1 / 2) * masked / (2 * B), rel=1e-4)
    assert terms["koleo"].item() == pytest.approx(slow_koleo(features[0]) + slow_koleo(features[1]), rel=1e-4)

    (terms["cls"] + terms["patch"]).backward(retain_graph=True)
    target = torch.tensor(p).view(2, B, K)
    for v in range(4):
        others = [g for g in range(2) if g != v]
        expected = sum(torch.softmax(student[v] / 0.1, -1) - target[g] for g in others) / 0.1 / B / terms_in_all
        torch.testing.assert_close(student.grad[v], expected.detach(), rtol=1e-4, atol=1e-6)  # type: ignore
    expected = (torch.softmax(patches / 0.1, -1) - torch.tensor(p_patch)) * weight[:, None] / 0.1 / (2 * B)
    torch.testing.assert_close(patches.grad, expected.detach(), rtol=1e-4, atol=1e-6)
    assert features.grad is None
    terms["koleo"].backward()
    assert features.grad[:2].any()  # type: ignore[index]
    assert not features.grad[2:].any(), "the small crops are left alone"  # type: ignore[index]


def test_koleo_weighs_a_tenth_unless_told_otherwise() -> None:
    assert module().weights == {"koleo": ConstantSchedule(0.1)}
    assert module(weights={"koleo": 0.0, "patch": 2.0}).weights == {
        "koleo": ConstantSchedule(0.0),
        "patch": ConstantSchedule(2.0),
    }


def test_both_heads_see_masked_patches_only() -> None:
    dinov2, batch = module(patch_prototypes=4).eval(), views()
    assert dinov2.teacher is not None
    mask = batch.masks["mask"]
    torch.nn.init.ones_(dinov2.mask_token)
    with torch.no_grad():
        predictions, targets = dinov2.predictions(batch), dinov2.targets(batch)
        row = 0
        for crop in range(2):
            seen = dinov2.student.backbone(batch.crops[crop], mask=mask[crop], mask_token=dinov2.mask_token)
            whole = dinov2.teacher.backbone(batch.crops[crop])
            torch.testing.assert_close(predictions.features[crop], seen.pooled)
            for image in range(B):
                for patch in range(16):
                    if mask[crop, image, patch]:
                        mine = dinov2.student.head.patch_head(seen.tokens[image, patch])
                        its = dinov2.teacher.head.patch_head(whole.tokens[image, patch])
                        torch.testing.assert_close(predictions.patches[row], mine)
                        torch.testing.assert_close(targets.patches[row], its)
                        row += 1
    assert row == len(predictions.patches) == len(targets.patches)
    assert predictions.patches.shape[1] == 4


def test_centers_are_of_class_tokens_and_of_masked_patches() -> None:
    dinov2, batch = module(), views()
    assert dinov2.center is not None
    assert dinov2.patch_center is not None
    with torch.no_grad():
        targets, predictions = dinov2.targets(batch), dinov2.predictions(batch)
        dinov2.observe(predictions, targets)
    assert not dinov2.patch_center.center.any()
    dinov2.center.commit()
    dinov2.patch_center.commit()
    torch.testing.assert_close(dinov2.center.center[0], 0.1 * targets.projections.flatten(0, 1).mean(0))
    torch.testing.assert_close(dinov2.patch_center.center[0], 0.1 * targets.patches.mean(0))


@pytest.mark.parametrize("settings", [{}, {"patch_prototypes": 4, "centering": "sinkhorn"}])
def test_gradients_reach_the_student_and_its_mask_token_only(settings: dict[str, object]) -> None:
    dinov2, batch = module(**settings), views()
    with torch.no_grad():
        targets = dinov2.targets(batch)
    predictions = dinov2.predictions(batch)
    sum(dinov2.terms(predictions, targets).values()).backward()  # type: ignore[union-attr]
    dinov2.observe(predictions, targets)
    for name, parameter in dinov2.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name


def test_declarations() -> None:
    dinov2 = module()
    assert dinov2.evaluated_tower is dinov2.teacher
    assert dinov2.teacher_policy.mode == "eval"
    assert dinov2.teacher_policy.buffer_rule == "copy"
    by_id = {id(p): name for name, p in dinov2.named_parameters()}
    roles = {role: {by_id[id(p)] for p in parameters} for role, parameters in dinov2.parameter_roles().items()}
    last = "student.head.head.last_layer"
    embed = "student.backbone.model.patch_embed.proj"
    assert roles == {
        "last_layer": {f"{last}.weight", f"{last}.scale"},
        "patch_embed": {f"{embed}.weight", f"{embed}.bias"},
    }


def test_refusals() -> None:
    with pytest.raises(ValueError, match="given to DINOv2, but it needs patch tokens"):
        DINOv2(SmallCNN(1, (4, 4, 4, 6)))
    with pytest.raises(ValueError, match=r"method.centering: 'mean' given, allowed is center or sinkhorn"):
        module(centering="mean")
