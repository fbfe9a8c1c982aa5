"""What distinguishes parameters for an optimizer: their kind and layer; and the rate of all groups together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

NamedParameters: TypeAlias = Iterable[tuple[str, nn.Parameter]]

# `layer1.0.conv1.weight`, `stages.0.blocks.1.gamma`, `blocks.7.…`: a second number without `blocks` counts
# only where it numbers a block, not the convolution of an nn.Sequential (`stages.0.1.weight`)
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|stages?|blocks?)\.?(\d+)(?:\.blocks?\.(\d+)|\.(\d+)(?=\.\w+\.))?(?=\.)")
_TOKEN = re.compile(r"token|pos_embed|position_embed")


def without_repeats(named_parameters: NamedParameters) -> list[tuple[str, nn.Parameter]]:
    """Each parameter once, under the first of its names."""
    first: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in named_parameters:
        first.setdefault(id(parameter), (name, parameter))
    return list(first.values())


def kind_of(name: str, parameter: Tensor) -> str:
    """``bias`` or ``token`` by the last part of the name; else ``norm`` (one dimension) or ``weight``."""
    leaf = name.rpartition(".")[2]
    if leaf.endswith("bias"):
        return "bias"
    if _TOKEN.search(leaf):
        return "token"
    return "norm" if parameter.ndim <= 1 else "weight"


def layer_factors(names: Sequence[str], decay: float) -> dict[str, float]:
    """Factor ``decay^(L+1−l)`` of every name, for a backbone with L blocks.

    l is 0 for what is defined before the first block, i+1 for block i, and L+1 for what comes after the
    blocks or is not below a ``backbone`` (BEiT, arXiv 2106.08254; DINOv2, arXiv 2304.07193). Names of timm's
    ViT, ResNet, ConvNeXt and Swin are understood, and others with numbered blocks, layers or stages.

    Args:
        names: in the order of definition; where none is below a ``backbone``, all are.
        decay: in (0, 1].

    Raises:
        ValueError: no numbered blocks.
    """
    factors = dict.fromkeys(names, 1.0)
    if decay == 1.0:
        return factors
    below = [name for name in names if "backbone" in name.split(".")] or list(names)
    matches = {name: match for name in below if (match := _BLOCK.search(name))}
    if not matches:
        raise ValueError(
            f"layer_decay: {decay} given, but the backbone has no numbered blocks (blocks.0, layer1); use 1"
        )
    blocks = {name: (int(m[1]), int(m[2] or m[3] or 0)) for name, m in matches.items()}
    layers = {block: i + 1 for i, block in enumerate(dict.fromkeys(blocks.values()))}
    top = len(layers) + 1
    layer = 0
    for name in below:
        if name in blocks:
            layer = layers[blocks[name]]
        elif layer:
            layer = top
        factors[name] = decay ** (top - layer)
    return factors


def scale_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Multiply the peak rates of all groups by ``factor``, for the rest of the run.

    The peaks stand in the groups (``base_lr`` of the recipe, ``initial_lr`` of torch's schedulers), so the change is
    in every checkpoint.

    Raises:
        ValueError: a factor that is not above 0.
    """
    if not factor > 0:
        raise ValueError(f"factor: {factor} given, allowed is a number above 0")
    for group in optimizer.param_groups:
        for name in {"lr", "base_lr", "initial_lr"} & group.keys():
            group[name] = group[name] * factor
