"""Where a vision transformer looks: the attention of its last block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.networks.backbones import Backbone


def attention_maps(backbone: Backbone, images: Tensor) -> tuple[Tensor, str] | None:
    """Attention of the last block over the patches of ``images`` ``[B, C, H, W]``, for each head.

    The block computes it as it trained, only not fused, so that it can be read; nothing of the backbone is changed.

    Returns:
        ``[B, heads, rows, columns]``, each non-negative, and who attends: "class token", or "mean over patches" where
        the features are not the class token's. None for a backbone without attention that can be read.
    """
    model: Any = getattr(backbone, "model", None)
    layers = [part for part in backbone.modules() if hasattr(part, "fused_attn") and hasattr(part, "attn_drop")]
    if not backbone.has_tokens or model is None or not layers:
        return None
    seen: list[Tensor] = []
    with _readable(layers[-1], seen), torch.no_grad():
        backbone(images)
    rows, columns = backbone.grid((images.shape[-2], images.shape[-1]))
    prefix = int(model.num_prefix_tokens)
    if len(seen) != 1 or seen[0].shape[2:] != (prefix + rows * columns,) * 2:
        return None
    by_class = bool(prefix) and getattr(model, "global_pool", "token") == "token"
    attention = seen[0][:, :, 0] if by_class else seen[0][:, :, prefix:].mean(2)
    maps = attention[:, :, prefix:].unflatten(2, (rows, columns)).float().cpu()
    return maps, "class token" if by_class else "mean over patches"


@contextmanager
def _readable(layer: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Collect what ``layer`` hands to its dropout: the softmax over keys ``[B, heads, N, N]``."""
    fused = layer.fused_attn
    dropout: Any = layer.attn_drop
    handle = dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    layer.fused_attn = False  # type: ignore[assignment]
    try:
        # a compiled network would not see the hook
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        layer.fused_attn = fused
        handle.remove()


# Matplotlib's viridis at nine even places, for eyes that tell colours apart and those that do not.
_VIRIDIS = (
    (0.267, 0.005, 0.329),
    (0.279, 0.175, 0.483),
    (0.230, 0.322, 0.546),
    (0.173, 0.449, 0.558),
    (0.128, 0.567, 0.551),
    (0.158, 0.684, 0.502),
    (0.369, 0.789, 0.383),
    (0.678, 0.864, 0.190),
    (0.993, 0.906, 0.144),
)


def coloured(maps: Tensor) -> Tensor:
    """``[…, h, w]`` to ``[…, 3, h, w]``: each map from its own least (dark blue) to its own largest value (yellow)."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    place = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny) * (len(_VIRIDIS) - 1)
    stops = torch.tensor(_VIRIDIS, dtype=maps.dtype)
    below = place.floor().long().clamp(0, len(_VIRIDIS) - 2)
    return stops[below].lerp(stops[below + 1], (place - below)[..., None]).movedim(-1, -3)
