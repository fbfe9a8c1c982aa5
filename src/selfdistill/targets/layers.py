"""Regression targets from several layers of the teacher."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["average_layers"]


def average_layers(
    layers: Sequence[Tensor], *, top_k: int, norm: Literal["layer", "instance"] | None, post_norm: bool
) -> Tensor:
    """Mean of the last `top_k` layers, each normalised first: data2vec's target (arXiv 2202.03555, §3.3).

    data2vec on images averages 6 layers of a ViT-B as they are and normalises the mean (`norm=None,
    post_norm=True`); data2vec 2 (arXiv 2212.07525) averages 10, each instance-normalised (`norm="instance",
    post_norm=True`). No normalisation has learned parameters; the variance floor is 1e-5.

    Args:
        layers: Outputs of the blocks, first to last, each [B, N, D] (patches only, without the class token).
        top_k: How many of the last layers count, in [1, len(layers)].
        norm: "layer" normalises each token over its D features, "instance" each feature over the N tokens
            of its image.
        post_norm: Whether to layer-normalise the mean.

    Returns:
        [B, N, D] in float32 (float64 for float64 layers).

    Raises:
        ValueError: A shape does not fit or an argument is out of range.
    """
    if not 1 <= top_k <= len(layers):
        raise ValueError(f"top_k must be in [1, {len(layers)}], the number of layers, got {top_k}")
    chosen = layers[-top_k:]
    shapes = sorted({tuple(layer.shape) for layer in chosen})
    if len(shapes) > 1 or len(shapes[0]) != 3:
        raise ValueError(f"layers must share one shape [batch, tokens, features], got {shapes}")
    if norm not in ("layer", "instance", None):
        raise ValueError(f'norm must be "layer", "instance" or None, got {norm!r}')
    if norm == "instance" and shapes[0][1] < 2:
        raise ValueError('norm="instance" needs layers with at least 2 tokens, got 1; use norm="layer"')

    # A running sum: a stack would hold top_k normalised copies at once.
    total = _normalise(chosen[0], norm)
    for layer in chosen[1:]:
        total = total + _normalise(layer, norm)
    return _normalise(total / top_k, "layer" if post_norm else None)


def _normalise(x_BND: Tensor, norm: str | None) -> Tensor:
    x_BND = x_BND.to(torch.promote_types(x_BND.dtype, torch.float32))
    if norm == "layer":
        return F.layer_norm(x_BND, x_BND.shape[-1:])
    if norm == "instance":
        return F.instance_norm(x_BND.transpose(1, 2)).transpose(1, 2)
    return x_BND
