"""Masked tokens and masked pixels, one image and one patch at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfdistill.methods import BYOL, SelfDistillModule
from selfdistill.objectives import MaskedPixels, MaskedTokens, Objective
from selfdistill.views import Views

torch.manual_seed(1)
MASK = torch.rand(2, 3, 16) < 0.3
# an image without masks among others
MASK[0, 1] = False


def build(objective: Objective) -> SelfDistillModule[Any, Any]:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    module = BYOL(vit, hidden_dim=8, out_dim=5, objectives={"extra": objective})
    assert module.teacher is not None
    for parameter in module.teacher.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def masked_positions() -> list[tuple[int, int, int]]:
    return [(g, b, n) for g in range(2) for b in range(3) for n in range(16) if MASK[g, b, n]]


def seen(module: SelfDistillModule[Any, Any], image: Tensor, hidden: Tensor, token: Tensor) -> Tensor:
    """Tokens ``[16, D]`` of one image, with masked patches replaced by hand before the blocks."""
    vit = module.student.backbone.model
    patches = vit.patch_embed(image[None])
    rows, columns, width = patches.shape[1:]
    flat = [token if hidden[n] else patches[0, n // columns, n % columns] for n in range(rows * columns)]
    x = vit._pos_embed(torch.stack(flat).view(1, rows, columns, width))
    for block in vit.blocks:
        x = block(x)
    return vit.norm(x)[0, 1:]


def slow_tokens(module: SelfDistillModule[Any, Any], views: Views, objective: MaskedTokens) -> Tensor:
    losses = []
    for g, b, n in masked_positions():
        h = seen(module, views.crops[g][b], MASK[g, b], objective.mask_token)[n]
        with torch.no_grad():
            assert module.teacher is not None
            tokens = module.teacher.backbone(views.crops[g][b][None]).tokens
            t = tokens[0, n]
            t = (t - t.mean()) / torch.sqrt(t.var(correction=0) + 1e-5)
        r = objective.regressor.weight @ h + objective.regressor.bias
        losses.append(((r - t) ** 2).sum() / len(t))
    return sum(losses) / len(losses)  # type: ignore[return-value]


def slow_pixels(module: SelfDistillModule[Any, Any], views: Views, objective: MaskedPixels) -> Tensor:
    losses = []
    for g, b, n in masked_positions():
        image = views.crops[g][b]
        h = seen(module, image, MASK[g, b], objective.mask_token)[n]
        row, column = 2 * (n // 4), 2 * (n % 4)
        x = torch.tensor([float(image[0, row + i, column + j]) for i in range(2) for j in range(2)])
        mean = sum(x) / 4
        x = (x - mean) / torch.sqrt(sum((v - mean) ** 2 for v in x) / 3 + 1e-6)
        r = objective.decoder.weight @ h + objective.decoder.bias
        losses.append(sum(abs(a - c) for a, c in zip(r, x, strict=True)) / 4)
    return sum(losses) / len(losses)  # type: ignore[return-value]


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("objective", "slow"),
    [(MaskedTokens(), slow_tokens), (MaskedPixels(patch=2, channels=1), slow_pixels)],
    ids=["tokens", "pixels"],
)
def test_value_and_gradient(objective: Any, slow: Any, masked_views: Any) -> None:
    module, views = build(objective), masked_views(MASK)
    ((name, loss),) = objective.terms(module, views, None, None).items()
    assert name == objective.name
    expected = slow(module, views, objective)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = gradients(module, loss), gradients(module, expected)
    assert ours.keys() == theirs.keys()
    assert {n for n, _ in module.named_parameters() if n.startswith("objectives.")} <= ours.keys()
    assert not any(n.startswith(("teacher.", "student.head")) for n in ours)
    for parameter, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[parameter], rtol=1e-4, atol=2e-6, msg=parameter)


@pytest.mark.parametrize("objective", [MaskedTokens(), MaskedPixels(patch=2, channels=1)], ids=["tokens", "pixels"])
def test_without_a_masked_patch_it_is_zero_and_so_is_every_gradient(objective: Any, masked_views: Any) -> None:
    module = build(objective)
    (loss,) = objective.terms(module, masked_views(torch.zeros_like(MASK)), None, None).values()
    assert loss.item() == 0
    given = gradients(module, loss)
    assert {n for n, _ in module.named_parameters() if n.startswith("objectives.")} <= given.keys()
    assert not any(gradient.any() for gradient in given.values())


@pytest.mark.parametrize("objective", [MaskedTokens(), MaskedPixels(patch=2, channels=1)], ids=["tokens", "pixels"])
def test_views_without_masks_are_refused(objective: Any, multicrop: Any) -> None:
    module = build(objective)
    with pytest.raises(ValueError, match=rf"objective\.{objective.name}: views without masked patches.*views=ibot"):
        objective.terms(module, multicrop(), None, None)


def test_another_patch_is_refused(masked_views: Any) -> None:
    for settings in ({"patch": 4, "channels": 1}, {"patch": 2, "channels": 3}):
        objective = MaskedPixels(**settings)
        module = build(objective)
        with pytest.raises(ValueError, match=r"objective\.masked_pixels\.patch: . given.*give the backbone's patch"):
            objective.terms(module, masked_views(MASK), None, None)
    with pytest.raises(ValueError, match="two values in a patch"):
        MaskedPixels(patch=1, channels=1)


def test_a_teacher_with_other_patches_is_refused(masked_views: Any) -> None:
    objective = MaskedTokens()
    module = build(objective)
    assert module.teacher is not None
    module.teacher.backbone.model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=2, num_classes=0
    )
    with pytest.raises(ValueError, match=r"objective\.masked_tokens: 4 patches of the teacher given for 16"):
        objective.terms(module, masked_views(MASK), None, None)
