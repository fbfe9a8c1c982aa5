"""timm's models as backbones, and the choice by name.

Shapes: B images, C channels, N patch tokens, D features.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfdistill.compatibility import refuse_backbone
from selfdistill.heads import sincos_2d
from selfdistill.networks.backbones import Backbone, Features, ModuleBackbone, block_positions
from selfdistill.networks.published import load_published


class TimmViT(Backbone):
    """A timm ``VisionTransformer`` with masking, token dropping and intermediate outputs."""

    has_tokens = True
    ignores = frozenset({"small_stem"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        vit: Any = model
        self.model: Any = vit
        self.dim = int(vit.num_features)
        self.depth = len(vit.blocks)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = self.model.patch_embed.patch_size
        return size[0] // rows, size[1] // columns

    def checkpoint_activations(self, on: bool = True) -> None:
        self.model.set_grad_checkpointing(on)
        self.recomputes = on

    def layer_dims(self, layers: Sequence[int]) -> list[int]:
        return [self.dim for _ in block_positions(layers, self.depth)]

    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        x = self.model.patch_embed(images)
        if mask is not None:
            if mask_token is None:
                raise ValueError("mask_token: required where mask is given")
            if mask.shape[1] != x.shape[1:-1].numel():
                raise ValueError(
                    f"mask: {mask.shape[1]} patches an image given, this one has {x.shape[1:-1].numel()}; "
                    "the grid of views.masks has to be that of the backbone's patches"
                )
            x = torch.where(mask.reshape(*x.shape[:-1], 1), mask_token.to(x.dtype), x)
        x = self.model._pos_embed(x)
        prefix = int(self.model.num_prefix_tokens)
        if keep is not None:
            kept = keep.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, kept)], dim=1)
        x = self.model.norm_pre(self.model.patch_drop(x))
        wanted = block_positions(layers, self.depth)
        taps: dict[int, Tensor] = {}
        checkpointing = self.model.grad_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.model.blocks):
            x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
            if i in wanted:
                taps[i] = x[:, prefix:]
        x = self.model.norm(x)
        pooled = self.model.forward_head(x, pre_logits=True)
        return Features(pooled, x[:, prefix:], tuple(taps[i] for i in wanted))


class TimmBackbone(Backbone):
    """Any other timm model (ResNet, ConvNeXt, …): pooled features, and stages through ``layers``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        network: Any = model
        self.model: Any = network
        # head_hidden_size differs from num_features where the pooled features pass a pre-logits layer
        self.dim = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.depth = len(getattr(network, "feature_info", ()) or ())
        self.ignores = frozenset({"image_size", "patch_size"} | (set() if _has_stem(network) else {"small_stem"}))

    def checkpoint_activations(self, on: bool = True) -> None:
        try:
            self.model.set_grad_checkpointing(on)
        except (AttributeError, AssertionError):  # timm has it, or asserts that it is not asked for
            super().checkpoint_activations(on)
        self.recomputes = on

    def layer_dims(self, layers: Sequence[int]) -> list[int]:
        infos = list(self.model.feature_info)
        return [int(infos[i]["num_chs"]) for i in block_positions(layers, self.depth)]

    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        self.refuse_token_arguments(mask, keep)
        if not layers:
            return Features(self.model.forward_head(self.model.forward_features(images), pre_logits=True))
        wanted = block_positions(layers, self.depth)
        final, maps = self.model.forward_intermediates(images, indices=sorted(set(wanted)))
        by_index = dict(zip(sorted(set(wanted)), maps, strict=True))
        pooled = self.model.forward_head(final, pre_logits=True)
        return Features(pooled, None, tuple(by_index[i].flatten(2).transpose(1, 2) for i in wanted))


def build_backbone(
    name: str,
    *,
    channels: int = 3,
    image_size: int | None = None,
    patch_size: int | None = None,
    small_stem: bool = False,
    drop_path: float = 0.0,
    pretrained: bool = False,
    checkpoint: str | None = None,
) -> Backbone:
    """A backbone by name: ``small_cnn``, ``small_vit`` or any timm model.

    Args:
        name: ``small_cnn``, ``small_vit`` (4 blocks of 128 features), ``resnet18``, ``vit_tiny_patch16_224``, …
            (``timm.list_models()``).
        channels: C of the images.
        image_size: the size of the global crops in pixels; used by vision transformers for their
            position embedding (which is interpolated for other crop sizes). None keeps the model's own.
        patch_size: patch side in pixels of vision transformers; None keeps the model's own.
        small_stem: for ResNets on small images, a 3×3 stride-1 stem without max-pooling
            (as published CIFAR results use).
        drop_path: stochastic depth rate of the student.
        pretrained: load timm's published weights (needs network or timm's cache).
        checkpoint: a file to start from, in a published layout; see :func:`load_published`.

    Raises:
        ValueError: an unknown name, with the nearest known ones; or weights that cannot be had.
    """
    backbone = _build(name, channels, image_size, patch_size, small_stem, drop_path, pretrained)
    if checkpoint is not None:
        load_published(checkpoint, backbone)
    return backbone


def _build(
    name: str,
    channels: int,
    image_size: int | None,
    patch_size: int | None,
    small_stem: bool,
    drop_path: float,
    pretrained: bool,
) -> Backbone:
    if name == "small_cnn":
        from selfdistill.networks.small_cnn import SmallCNN

        return SmallCNN(channels=channels)
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if name == "small_vit":
        small: Any = VisionTransformer(
            img_size=image_size or 32,
            patch_size=patch_size or 4,
            in_chans=channels,
            num_classes=0,
            embed_dim=128,
            depth=4,
            num_heads=4,
            drop_path_rate=drop_path,
            dynamic_img_size=True,
            # timm's default, a standard deviation of .02, is for wide networks: here the blocks would hardly add to
            # their input, and positions hardly to patches, which a short run does not make up for
            weight_init="jax",
        )
        with torch.no_grad():
            small.pos_embed[:, small.num_prefix_tokens :].copy_(sincos_2d(128, small.patch_embed.grid_size))
        vit = TimmViT(small)
        vit.ignores |= {"pretrained"}
        return vit
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, ["small_cnn", "small_vit", *timm.list_models()], n=3)
        refuse_backbone(name, near)
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": channels, "pretrained": pretrained}
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    is_vit = issubclass(_timm_class(name), VisionTransformer)
    if is_vit:
        arguments["dynamic_img_size"] = True
        if image_size is not None:
            arguments["img_size"] = image_size
        if patch_size is not None:
            arguments["patch_size"] = patch_size
    try:
        model: Any = timm.create_model(name, **arguments)
    except Exception as error:
        if not pretrained:
            raise
        raise ValueError(
            f"backbone.pretrained: the weights of {name!r} could not be loaded "
            f"({type(error).__name__}); set backbone.pretrained=false or connect to the network"
        ) from None
    if small_stem and _has_stem(model):
        model.conv1 = nn.Conv2d(channels, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return TimmViT(model) if isinstance(model, VisionTransformer) else TimmBackbone(model)


def _has_stem(model: nn.Module) -> bool:
    """Whether it begins as a ResNet does, so that it can begin as one for small images."""
    return hasattr(model, "maxpool") and isinstance(getattr(model, "conv1", None), nn.Conv2d)


def _timm_class(name: str) -> type:
    """The class that a timm entry point builds, found on the meta device (no memory, no random numbers)."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return type(timm.create_model(name, num_classes=0))


def as_backbone(backbone: Backbone | nn.Module | str) -> Backbone:
    """A :class:`Backbone` from a name, any ``nn.Module``, or a backbone itself."""
    if isinstance(backbone, Backbone):
        return backbone
    if isinstance(backbone, str):
        return build_backbone(backbone)
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: {type(backbone).__name__} given, allowed is a timm name or an nn.Module")
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(backbone, VisionTransformer):
        return TimmViT(backbone)
    if hasattr(backbone, "forward_features") and hasattr(backbone, "forward_head"):
        return TimmBackbone(backbone)
    return ModuleBackbone(backbone, channels=_input_channels(backbone))


def _input_channels(module: nn.Module) -> int:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
    return 3
