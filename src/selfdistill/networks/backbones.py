"""Any network behind one call: images in, :class:`Features` out.

Shapes: B images, C channels, N patch tokens, D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

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
        recomputes: whether activations are computed again for the backward pass.
        depth: number of blocks (or stages) that ``layers`` can index.
        ignores: arguments of ``build_backbone`` that say nothing to this network.
    """

    dim: int
    has_tokens: bool = False
    recomputes: bool = False
    depth: int = 0
    ignores: frozenset[str] = frozenset()

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

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute activations for the backward pass from now on, for less memory; or keep them again.

        Raises:
            ValueError: the network has no way to.
        """
        if on:
            raise ValueError(
                f"trainer.activation_checkpointing: true given, but {type(self).__name__} cannot recompute "
                "activations; choose false, or a timm network, small_cnn or small_vit"
            )

    def refuse_token_arguments(self, mask: Tensor | None, keep: Tensor | None) -> None:
        if mask is not None or keep is not None:
            raise ValueError(_no_tokens(self))


def _no_tokens(backbone: nn.Module) -> str:
    return (
        f"backbone: {type(backbone).__name__} has no patch tokens, which masks and patch targets need; "
        "choose a vision transformer (backbone=vit_tiny, vit_small, …)"
    )


def block_positions(layers: Sequence[int], depth: int) -> list[int]:
    """Indices of ``layers`` counted from the start.

    Raises:
        ValueError: an index that the network does not have.
    """
    for i in layers:
        if not -depth <= i < depth:
            raise ValueError(f"layers: {i} given, allowed is {-depth} to {depth - 1}")
    return [i % depth for i in layers]


class ModuleBackbone(Backbone):
    """The user's own ``nn.Module``: ``[B, C, H, W] -> [B, D]`` or ``[B, D, h, w]`` (averaged over h, w).

    Args:
        module: the network.
        dim: D; read from ``module.num_features`` or found by one forward pass where not given.
        channels: C of the image that finds it.
        image_size: height and width of the image that finds it.
    """

    def __init__(self, module: nn.Module, *, dim: int | None = None, channels: int = 3, image_size: int = 64) -> None:
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
