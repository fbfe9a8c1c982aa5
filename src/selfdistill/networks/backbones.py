"""Any network behind one call: images in, :class:`Features` out.

Shapes: B images, C channels, N patch tokens, D features.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Features(NamedTuple):
    """What a backbone saw.

    Attributes:
        pooled: ``[B, D]``, one vector an image (class token or pooled map, as the network does it).
        tokens: ``[B, N, D]`` patch tokens after the final norm (only the kept ones under ``keep``);
            None where the network has no tokens.
        layers: outputs of the blocks asked for, ``[B, N_i, D_i]`` each, before any final norm.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    layers: tuple[Tensor, ...] = ()


class Backbone(nn.Module, ABC):
    """A network with a declared output.

    Attributes:
        dim: D, the width of ``Features.pooled``.
        has_tokens: whether patch tokens exist, so that masks, ``keep`` and patch targets can be used.
        depth: number of blocks (or stages) that ``layers`` can index.
    """

    dim: int
    has_tokens: bool = False
    depth: int = 0

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Encode ``images [B, C, H, W]``.

        Args:
            images: a batch of one resolution.
            mask: ``[B, N]`` bool, True where a patch embedding is replaced by ``mask_token``.
            mask_token: ``[D]``, required with ``mask``.
            keep: ``[B, K]`` int64, the patch tokens that are encoded; the others are dropped before the
                first block.
            layers: indices of the blocks whose outputs are returned, negative ones counted from the end.
        """

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Patch grid (rows, columns) of an image of ``size`` (height, width)."""
        raise ValueError(_no_tokens(self))

    def layer_dims(self, layers: Sequence[int]) -> list[int]:
        """Width D_i of each block in ``layers``."""
        raise ValueError(f"layers: {type(self).__name__} gives no intermediate outputs; use layers=()")

    def refuse_token_arguments(self, mask: Tensor | None, keep: Tensor | None) -> None:
        if mask is not None or keep is not None:
            raise ValueError(_no_tokens(self))


def _no_tokens(backbone: nn.Module) -> str:
    return (
        f"backbone: {type(backbone).__name__} has no patch tokens, which masks and patch targets need; "
        "choose a vision transformer (backbone=vit_tiny, vit_small, …)"
    )


class TimmViT(Backbone):
    """A timm ``VisionTransformer`` with masking, token dropping and intermediate outputs."""

    has_tokens = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.dim = int(self.model.num_features)
        self.depth = len(self.model.blocks)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = self.model.patch_embed.patch_size
        return size[0] // rows, size[1] // columns

    def layer_dims(self, layers: Sequence[int]) -> list[int]:
        return [self.dim for _ in _positions(layers, self.depth)]

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
            x = torch.where(mask.reshape(*x.shape[:-1], 1), mask_token.to(x.dtype), x)
        x = self.model._pos_embed(x)
        prefix = int(self.model.num_prefix_tokens)
        if keep is not None:
            kept = keep.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, kept)], dim=1)
        x = self.model.norm_pre(self.model.patch_drop(x))
        wanted = _positions(layers, self.depth)
        taps: dict[int, Tensor] = {}
        checkpointing = self.model.grad_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.model.blocks):
            if checkpointing:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i in wanted:
                taps[i] = x[:, prefix:]
        x = self.model.norm(x)
        pooled = self.model.forward_head(x, pre_logits=True)
        return Features(pooled, x[:, prefix:], tuple(taps[i] for i in wanted))


class TimmBackbone(Backbone):
    """Any other timm model (ResNet, ConvNeXt, …): pooled features, and stages through ``layers``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        # head_hidden_size differs from num_features where the pooled features pass a pre-logits layer
        self.dim = int(getattr(model, "head_hidden_size", None) or self.model.num_features)
        self.depth = len(getattr(model, "feature_info", ()) or ())

    def layer_dims(self, layers: Sequence[int]) -> list[int]:
        infos = list(self.model.feature_info)
        return [int(infos[i]["num_chs"]) for i in _positions(layers, self.depth)]

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
        wanted = _positions(layers, self.depth)
        final, maps = self.model.forward_intermediates(images, indices=sorted(set(wanted)))
        by_index = dict(zip(sorted(set(wanted)), maps, strict=True))
        pooled = self.model.forward_head(final, pre_logits=True)
        return Features(pooled, None, tuple(by_index[i].flatten(2).transpose(1, 2) for i in wanted))


class ModuleBackbone(Backbone):
    """The user's own ``nn.Module``: ``[B, C, H, W] -> [B, D]`` or ``[B, D, h, w]`` (averaged over h, w).

    Args:
        module: the network.
        dim: D; read from ``module.num_features`` or found by one forward pass where not given.
        channels: C of the image that finds it.
        image_size: height and width of the image that finds it.
    """

    def __init__(
        self, module: nn.Module, *, dim: int | None = None, channels: int = 3, image_size: int = 64
    ) -> None:
        super().__init__()
        self.module = module
        declared = dim if dim is not None else getattr(module, "num_features", None)
        self.dim = declared if isinstance(declared, int) else self._find_dim(channels, image_size)

    def _find_dim(self, channels: int, image_size: int) -> int:
        modes = {name: part.training for name, part in self.module.named_modules()}
        parameter = next(self.module.parameters(), None)
        device = None if parameter is None else parameter.device
        try:
            self.module.eval()
            with torch.no_grad():
                return int(self(torch.zeros(2, channels, image_size, image_size, device=device)).pooled.shape[1])
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"backbone: {type(self.module).__name__} did not accept a [2, {channels}, {image_size}, "
                f"{image_size}] image, so its output width is unknown; set an integer attribute "
                f"`num_features` on it ({error})"
            ) from None
        finally:
            for name, part in self.module.named_modules():
                part.training = modes[name]

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
        if layers:
            self.layer_dims(layers)
        x = self.module(images)
        if not isinstance(x, Tensor) or x.dim() not in (2, 4):
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"backbone: {type(self.module).__name__} returned {given}; "
                "allowed is a tensor [B, D] or [B, D, h, w] — remove its classifier"
            )
        return Features(x.mean((2, 3)) if x.dim() == 4 else x)


def _positions(layers: Sequence[int], depth: int) -> list[int]:
    for i in layers:
        if not -depth <= i < depth:
            raise ValueError(f"layers: {i} given, allowed is {-depth} to {depth - 1}")
    return [i % depth for i in layers]


def build_backbone(
    name: str,
    *,
    channels: int = 3,
    image_size: int | None = None,
    patch_size: int | None = None,
    small_stem: bool = False,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> Backbone:
    """A backbone by name: ``small_cnn`` or any timm model.

    Args:
        name: ``small_cnn``, ``resnet18``, ``vit_tiny_patch16_224``, … (``timm.list_models()``).
        channels: C of the images.
        image_size: the size of the global crops in pixels; used by vision transformers for their
            position embedding (which is interpolated for other crop sizes). None keeps the model's own.
        patch_size: patch side in pixels of vision transformers; None keeps the model's own.
        small_stem: for ResNets on small images, a 3×3 stride-1 stem without max-pooling
            (as published CIFAR results use).
        drop_path: stochastic depth rate of the student.
        pretrained: load timm's published weights (needs network or timm's cache).

    Raises:
        ValueError: an unknown name, with the nearest known ones; or weights that cannot be had.
    """
    if name == "small_cnn":
        from selfdistill.networks.small_cnn import SmallCNN

        return SmallCNN(channels=channels)
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, ["small_cnn", *timm.list_models()], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"backbone.name: {name!r} given, allowed is small_cnn or a timm model{hint}")
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
    if small_stem and hasattr(model, "maxpool") and isinstance(getattr(model, "conv1", None), nn.Conv2d):
        model.conv1 = nn.Conv2d(channels, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return TimmViT(model) if isinstance(model, VisionTransformer) else TimmBackbone(model)


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
        raise TypeError(
            f"backbone: {type(backbone).__name__} given, allowed is a timm name or an nn.Module"
        )
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
