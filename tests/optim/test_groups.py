from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from selfdistill.networks.small_cnn import SmallCNN
from selfdistill.optim.groups import kind_of, layer_factors, without_repeats


def names_of(backbone: nn.Module) -> list[str]:
    wrapper = nn.ModuleDict(
        {
            "student": nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)}),
            "predictor": nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])}),
        }
    )
    return [name for name, _ in wrapper.named_parameters()]


def dinov2_factor(name: str, decay: float, depth: int) -> float:
    """The rule of DINOv2, written down once more: position by name, the block's number plus one."""
    layer = depth + 1
    if "backbone" in name:
        if any(part in name for part in ("pos_embed", "patch_embed", "cls_token", "reg_token")):
            layer = 0
        elif "blocks." in name:
            layer = int(name.split("blocks.")[1].split(".")[0]) + 1
    return decay ** (depth + 1 - layer)


def test_vision_transformers_follow_dinov2() -> None:
    shape = {"depth": 3, "embed_dim": 12, "num_heads": 2, "reg_tokens": 2, "init_values": 1e-5}
    vit = timm.create_model("vit_small_patch16_224", num_classes=0, **shape)
    names = names_of(vit)
    factors = layer_factors(names, 0.9)
    assert factors == pytest.approx({name: dinov2_factor(name, 0.9, 3) for name in names})
    assert factors["student.backbone.cls_token"] == pytest.approx(0.9**4)
    assert factors["student.backbone.blocks.0.ls1.gamma"] == pytest.approx(0.9**3)
    assert factors["student.backbone.norm.weight"] == 1.0
    assert factors["predictor.blocks.0.weight"] == 1.0


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("resnet18", {"conv1.": 0, "bn1.": 0, "layer1.0": 1, "layer2.0.downsample": 3, "layer4.1": 8}),
        ("resnet50", {"conv1.": 0, "layer1.0": 1, "layer1.2": 3, "layer2.0": 4, "layer4.2.bn3": 16}),
        (
            "convnext_atto",
            {"stem.": 0, "stages.0.blocks.1.gamma": 2, "stages.1.downsample": 3, "stages.3.blocks.1": 12},
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"patch_embed": 0, "layers.0.blocks.1": 2, "layers.1.downsample": 3, "norm.": 13},
        ),
    ],
)
def test_other_networks_of_timm(model: str, layers: dict[str, int]) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    factors = layer_factors(names_of(backbone), 0.5)
    depth = max(layers.values()) - ("norm." in layers)
    for prefix, layer in layers.items():
        found = {f for name, f in factors.items() if name.startswith(f"student.backbone.{prefix}")}
        assert found == {0.5 ** (depth + 1 - layer)}, prefix
    assert factors["student.head.weight"] == 1.0


def test_a_convolution_and_its_norm_are_one_layer() -> None:
    factors = layer_factors(names_of(SmallCNN()), 0.5)
    assert {name: f for name, f in factors.items() if ".stages.1." in name} == {
        f"student.backbone.stages.1.{leaf}": 0.5**3 for leaf in ("0.weight", "1.weight", "1.bias")
    }


def test_names_without_a_backbone_count_all() -> None:
    names = ["embed.weight", "blocks.0.weight", "blocks.1.weight", "norm.weight"]
    assert list(layer_factors(names, 0.5).values()) == [0.125, 0.25, 0.5, 1.0]


def test_without_decay_every_factor_is_one() -> None:
    assert layer_factors(["a.weight", "blocks.0.weight"], 1.0) == {"a.weight": 1.0, "blocks.0.weight": 1.0}


def test_refuses_a_network_without_blocks() -> None:
    with pytest.raises(ValueError, match=r"^layer_decay: 0\.9 given, .* no numbered blocks"):
        layer_factors(names_of(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))), 0.9)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("head.weight", (3, 2), "weight"),
        ("head.bias", (3,), "bias"),
        ("bias", (3,), "bias"),
        ("attn.q_bias", (3,), "bias"),
        ("norm.weight", (3,), "norm"),
        ("ls1.gamma", (3,), "norm"),
        ("logit_scale", (), "norm"),
        ("backbone.cls_token", (1, 1, 3), "token"),
        ("reg_token", (1, 4, 3), "token"),
        ("mask_token", (3,), "token"),
        ("pos_embed", (1, 5, 3), "token"),
        ("encoder.pos_embedding", (1, 5, 3), "token"),
        ("patch_embed.proj.weight", (3, 3, 4, 4), "weight"),
        ("token_mixer.weight", (3, 3), "weight"),
        ("last_layer.parametrizations.weight.original0", (5, 1), "weight"),
    ],
)
def test_kinds(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(name, torch.empty(shape)) == kind


def test_tied_parameters_come_once_under_their_first_name() -> None:
    tied, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    assert without_repeats([("a", tied), ("b", other), ("c", tied)]) == [("a", tied), ("b", other)]
