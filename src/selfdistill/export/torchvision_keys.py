"""timm's names to torchvision's, for the architectures that both have."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import Tensor, nn

from selfdistill.export.plain import Recipe, shapes

_VIT = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.encoder_layer_\1.ln_\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.encoder_layer_\1.self_attention.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.encoder_layer_\1.mlp.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.encoder_layer_\1.mlp.3."),
)


class Twin(NamedTuple):
    """A network of torchvision, the state dict in its names, and the lines of code that build it."""

    model: nn.Module
    state: dict[str, Tensor]
    code: list[str]


def to_torchvision(network: nn.Module, recipe: Recipe) -> Twin:
    """The same network in torchvision; its weights are not loaded.

    Raises:
        ValueError: torchvision has no such network.
    """
    import torchvision

    state = network.state_dict()
    channels = recipe.arguments.get("in_chans", 3)
    lines: list[str] = []
    model: Any = None
    if recipe.library == "timm" and hasattr(network, "blocks"):
        lines, model = _vision_transformer(network, recipe)
        state = {_vit_name(name): value for name, value in state.items()}
        if channels != 3:
            size = recipe.arguments["patch_size"][0]
            width = model.conv_proj.out_channels
            model.conv_proj = nn.Conv2d(channels, width, size, stride=size)
            lines.append(f"model.conv_proj = torch.nn.Conv2d({channels}, {width}, {size}, stride={size})")
    elif recipe.library == "timm" and recipe.architecture in torchvision.models.list_models(torchvision.models):
        lines = [f"model = torchvision.models.{recipe.architecture}()"]
        model = torchvision.models.get_model(recipe.architecture)
        if hasattr(model, "fc"):
            model.fc = nn.Identity()
            lines.append("model.fc = torch.nn.Identity()")
            if recipe.small_stem:
                model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
                model.maxpool = nn.Identity()
                lines.append(f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)")
                lines.append("model.maxpool = torch.nn.Identity()")
            elif channels != 3:
                model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
                lines.append(f"model.conv1 = torch.nn.Conv2d({channels}, 64, 7, stride=2, padding=3, bias=False)")
    if model is None or shapes(model) != {name: tuple(value.shape) for name, value in state.items()}:
        raise ValueError(
            f"format: torchvision has no network equal to {recipe.architecture}; allowed are ResNets and plain "
            "vision transformers; others: format=safetensors, torch_export or onnx"
        )
    return Twin(model, state, lines)


def _vision_transformer(network: Any, recipe: Recipe) -> tuple[list[str], Any]:
    import torchvision

    block = network.blocks[0]
    arguments = {
        "image_size": recipe.arguments["img_size"][0],
        "patch_size": recipe.arguments["patch_size"][0],
        "num_layers": len(network.blocks),
        "num_heads": block.attn.num_heads,
        "hidden_dim": network.embed_dim,
        "mlp_dim": block.mlp.fc1.out_features,
    }
    model: Any = torchvision.models.VisionTransformer(**arguments)
    model.heads = nn.Identity()
    written = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return [f"model = torchvision.models.VisionTransformer({written})", "model.heads = torch.nn.Identity()"], model


def _vit_name(name: str) -> str:
    for pattern, replacement in _VIT:
        new, changed = re.subn(pattern, replacement, name)
        if changed:
            return new
    return name
