"""Backbones behind one interface, masks and crops included."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from selfdistill.networks import SmallCNN, Tower, as_backbone, build_backbone
from selfdistill.teacher import make_teacher


def vit(**extra: float) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("vit_tiny_patch16_224", image_size=16, patch_size=4, channels=1, **extra).eval()  # type: ignore[arg-type]


def test_a_vit_gives_what_timm_gives() -> None:
    backbone = vit()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        features = backbone(images, layers=(-1, 0))
        expected = backbone.model.forward_features(images)
    torch.testing.assert_close(features.pooled, expected[:, 0])
    torch.testing.assert_close(features.tokens, expected[:, 1:])
    assert [tuple(x.shape) for x in features.layers] == [(2, 16, 192)] * 2
    torch.testing.assert_close(backbone.model.norm(features.layers[0]), features.tokens)
    assert backbone.grid((16, 16)) == (4, 4)


def test_masked_patches_do_not_reach_the_network() -> None:
    backbone = vit()
    images, token = torch.randn(2, 1, 16, 16), torch.randn(192)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True
    changed = images.clone()
    changed[:, :, 4:8, 4:8] += 1.0  # patch 5 of the 4×4 grid
    with torch.no_grad():
        a = backbone(images, mask=mask, mask_token=token).tokens
        b = backbone(changed, mask=mask, mask_token=token).tokens
        c = backbone(changed).tokens
    torch.testing.assert_close(a, b)
    assert not torch.allclose(b, c)


def test_a_mask_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="mask: 9 patches an image given, this one has 16; the grid of views.masks"):
        vit()(torch.randn(2, 1, 16, 16), mask=torch.zeros(2, 9, dtype=torch.bool), mask_token=torch.zeros(192))


def test_the_small_vit_takes_crops_of_any_size() -> None:
    backbone = build_backbone("small_vit", image_size=8, patch_size=2, channels=1)
    assert (backbone.dim, backbone.depth, backbone.has_tokens) == (128, 4, True)
    assert [backbone(torch.randn(2, 1, size, size)).tokens.shape[1] for size in (8, 6)] == [16, 9]


def test_dropped_tokens_do_not_reach_the_network() -> None:
    backbone = vit()
    images = torch.randn(2, 1, 16, 16)
    keep = torch.tensor([[0, 1, 7], [3, 2, 15]])
    changed = images.clone()
    changed[:, :, 12:, :4] += 1.0  # patch 12, kept by neither
    with torch.no_grad():
        a, b = backbone(images, keep=keep), backbone(changed, keep=keep)
        everything = backbone(images, keep=torch.arange(16).expand(2, -1))
        plain = backbone(images)
    assert a.tokens.shape == (2, 3, 192)
    torch.testing.assert_close(a.tokens, b.tokens)
    torch.testing.assert_close(everything.tokens, plain.tokens)


def test_checkpointing_changes_no_value() -> None:
    backbone = vit().train()
    images = torch.randn(2, 1, 16, 16)
    plain = backbone(images).pooled.sum()
    plain.backward()
    gradient = backbone.model.blocks[0].attn.qkv.weight.grad.clone()
    backbone.zero_grad()
    backbone.model.set_grad_checkpointing()
    again = backbone(images).pooled.sum()
    again.backward()
    torch.testing.assert_close(again, plain)
    torch.testing.assert_close(backbone.model.blocks[0].attn.qkv.weight.grad, gradient)


class Scale(nn.Module):
    """Sees everything that the head is given."""

    def forward(self, pooled: Tensor, *others: Tensor) -> Tensor:
        return pooled * 2 if not others else torch.cat([pooled.flatten(0, -2), *[o.flatten(0, -2) for o in others]])


def test_crops_pass_once_per_resolution_and_keep_their_order() -> None:
    tower = Tower(vit(), Scale()).eval()
    sizes = [16, 8, 16, 8]
    crops = [torch.randn(3, 1, s, s) for s in sizes]
    calls: list[int] = []
    tower.backbone.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    with torch.no_grad():
        features, projection = tower(crops)
        alone = [tower(crop)[1] for crop in crops]
    assert calls == [6, 6, 3, 3, 3, 3]
    assert projection.shape == (4, 3, 192)
    torch.testing.assert_close(projection, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert features.tokens is not None
    assert features.tokens.shape == (2, 3, 16, 192)


def test_the_head_gets_selected_tokens_only() -> None:
    tower = Tower(vit(), Scale()).eval()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        features, projected = tower(images, select=torch.tensor([0, 17]))
    assert features.tokens is not None
    expected = torch.cat([features.pooled, features.tokens[0, :1], features.tokens[1, 1:2]])
    torch.testing.assert_close(projected, expected)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "small_cnn"])
def test_other_networks_give_pooled_features(name: str) -> None:
    size = 224 if "swin" in name else 32
    backbone = build_backbone(name, small_stem=True).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, size, size))
    assert features.pooled.shape == (2, backbone.dim)
    assert features.tokens is None
    with pytest.raises(ValueError, match="no patch tokens"):
        backbone(torch.randn(2, 3, size, size), mask=torch.zeros(2, 4, dtype=torch.bool))


def test_stages_of_convolutional_networks() -> None:
    for backbone in (SmallCNN(3), build_backbone("resnet18")):
        backbone.eval()
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            features = backbone(images, layers=(1, -1))
        assert [x.shape[-1] for x in features.layers] == backbone.layer_dims((1, -1))
        torch.testing.assert_close(features.layers[1].mean(1), features.pooled)
        with pytest.raises(ValueError, match="layers: 9 given"):
            backbone(images, layers=(9,))


def test_the_small_stem_keeps_small_images() -> None:
    assert build_backbone("resnet18", small_stem=True).model.conv1.stride == (1, 1)
    assert build_backbone("resnet18").model.conv1.stride == (2, 2)


def test_any_module_is_a_backbone() -> None:
    own = nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7))
    own.train()
    before = own[1].running_mean.clone()
    backbone = as_backbone(own)
    assert backbone.dim == 7
    assert own.training
    assert torch.equal(own[1].running_mean, before)
    assert backbone(torch.randn(2, 1, 8, 8)).pooled.shape == (2, 7)
    assert as_backbone(timm.create_model("resnet18", num_classes=0)).dim == 512
    assert as_backbone("resnet18").dim == 512


def test_a_classifier_that_returns_something_else_is_refused() -> None:
    class Two(nn.Module):
        num_features = 3

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ValueError, match="returned tuple"):
        as_backbone(Two())(torch.randn(1, 3, 8, 8))


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"backbone.name: 'resnet81' given.*did you mean.*resnet"):
        build_backbone("resnet81")


def test_pretrained_weights_fail_fast_and_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", lambda name, **k: offline() if k.get("pretrained") else nn.Identity())
    with pytest.raises(ValueError, match=r"backbone.pretrained: the weights of 'resnet18' could not be loaded"):
        build_backbone("resnet18", pretrained=True)


def test_noise_is_the_students_and_of_training_only() -> None:
    tower = Tower(SmallCNN(1, (4, 4, 4, 6)), nn.Identity(), noise=0.5).train()
    teacher = make_teacher(tower).train()
    images = torch.zeros(64, 1, 8, 8)
    seen: list[Tensor] = []
    tower.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tower(images)
    tower([images, images])
    assert seen[0].std().item() == pytest.approx(0.5, rel=0.05)
    assert not torch.equal(seen[1][:64], seen[1][64:])
    tower.eval()
    tower(images)
    assert torch.equal(seen[2], images)
    assert torch.equal(teacher(images)[1], teacher(images)[1])
    with pytest.raises(ValueError, match=r"student.noise: -1 given"):
        Tower(SmallCNN(1), nn.Identity(), noise=-1)
