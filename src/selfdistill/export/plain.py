"""A backbone as others know it: the network inside, how plain timm or torch builds it, and what it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfdistill.evaluation.features import evaluating
from selfdistill.methods import SelfDistillModule
from selfdistill.networks import Backbone, SmallCNN, Tower

Image = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True)
class Recipe:
    """How to build the network without this package.

    Attributes:
        library: ``timm``; ``small_cnn``, whose few lines the card spells out; or ``own``: the user's module.
        architecture: timm's name, or the class.
        arguments: of ``timm.create_model``, or of timm's ``VisionTransformer`` where ``architecture`` is that.
        small_stem: the first convolution is 3×3 with stride 1 and there is no pooling after it.
    """

    library: Literal["timm", "small_cnn", "own"]
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    small_stem: bool = False


def recipe_of(network: nn.Module, channels: int) -> Recipe:
    """How to build ``network``, tried on the spot: names and shapes of all entries are the same.

    What timm cannot build again is ``own``.
    """
    if isinstance(network, SmallCNN):
        return Recipe("small_cnn", "SmallCNN", {"channels": channels, "widths": list(network.widths)})
    name = str((getattr(network, "pretrained_cfg", None) or {}).get("architecture") or "")
    for recipe in _candidates(network, name, channels):
        try:
            built = build(recipe)
        except (RuntimeError, TypeError, ValueError):
            continue
        if shapes(built) == shapes(network):
            return recipe
    return Recipe("own", type(network).__name__)


def _candidates(network: Any, name: str, channels: int) -> list[Recipe]:
    from timm.models.vision_transformer import VisionTransformer

    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    if isinstance(network, VisionTransformer):
        patches: Any = network.patch_embed
        arguments |= {"img_size": list(patches.img_size or (224, 224)), "patch_size": list(patches.patch_size)}
        arguments["dynamic_img_size"] = True
        if name:
            return [Recipe("timm", name, arguments)]
        block: Any = network.blocks[0]
        shape = {"embed_dim": network.embed_dim, "depth": len(network.blocks), "num_heads": block.attn.num_heads}
        return [Recipe("timm", "VisionTransformer", {**arguments, **shape})]
    if not name:
        return []
    return [Recipe("timm", name, arguments, small_stem=small) for small in (False, True)]


def build(recipe: Recipe) -> nn.Module:
    """The network of ``recipe``, with weights that mean nothing.

    Raises:
        ValueError: an ``own`` network.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        if recipe.library == "small_cnn":
            return SmallCNN(**recipe.arguments)
        if recipe.library == "own":
            raise ValueError(f"architecture: {recipe.architecture} is the user's own; build it as in training")
        if recipe.architecture == "VisionTransformer":
            return VisionTransformer(**recipe.arguments)
        model: Any = timm.create_model(recipe.architecture, **recipe.arguments)
    if recipe.small_stem:
        model.conv1 = nn.Conv2d(recipe.arguments["in_chans"], model.conv1.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


class Pooled(nn.Module):
    """``[B, C, H, W] -> [B, D]``: what the network pools (class token, or the mean of the map)."""

    words = "the pooled output of the network"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).pooled


class PatchMean(Pooled):
    """``[B, C, H, W] -> [B, D]``: the mean of the patch tokens."""

    words = "the mean of the patch tokens after the final norm"

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.backbone(images).tokens
        assert tokens is not None
        return tokens.mean(1)


class Projected(nn.Module):
    """``[B, C, H, W] -> [B, P]``: backbone and head."""

    words = "the output of the head"

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        return self.tower(images)[1]


def representation(module: SelfDistillModule[Any, Any], image: Image) -> type[Pooled]:
    """What computes the same as ``module.embed``, told by trying it on one image.

    Raises:
        ValueError: ``embed`` does something else.
    """
    backbone = module.evaluated_tower.backbone
    sample = torch.linspace(-1, 1, image[0] * image[1] * image[2], device=module.device).reshape(1, *image)
    with evaluating(module), torch.no_grad():
        wanted, features = module.embed(sample), backbone(sample)
        if wanted.shape == features.pooled.shape and torch.allclose(wanted, features.pooled, atol=1e-5):
            return Pooled
        if features.tokens is not None and torch.allclose(wanted, features.tokens.mean(1), atol=1e-5):
            return PatchMean
    raise ValueError(
        f"format: the embed of {type(module).__name__} is neither pooled features nor the mean of patch tokens; "
        "export it with format=safetensors"
    )
