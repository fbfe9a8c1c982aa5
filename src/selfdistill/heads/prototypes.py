"""Heads that score features against prototypes (clusters), and several heads side by side.

All of them are plain parameters used by plain functions, without torch's weight-norm hooks, so that a head
can be deep-copied, pickled, averaged with `torch._foreach_lerp_` and compiled.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.heads.mlp import MLP, Norm
from selfdistill.products import unit

__all__ = ["DINOHead", "MultiHead", "Prototypes", "SwAVPrototypes"]


class Prototypes(nn.Module):
    """Cosines between features and learnt prototypes: [..., in_dim] -> logits [..., count].

    The rows of the weight are normalised where they are used, which is weight norm (arXiv 1602.07868),
    w_k = g_k v_k / |v_k|, with g_k = 1 for ever (DINO's `norm_last_layer`, and MSN) or learnt from 1.

    Args:
        in_dim: features of the input, normalised here.
        count: number of prototypes K.
        trainable_scale: learn the scales g, shaped [K, 1] as the papers' code does, where weight decay
            applies to them as to any matrix. The logits are then no longer within [-1, 1].

    Raises:
        ValueError: a size below 1.
    """

    scale: nn.Parameter | None

    def __init__(self, in_dim: int, count: int, *, trainable_scale: bool = False) -> None:
        super().__init__()
        _check_sizes(in_dim, count)
        self.in_dim, self.out_dim = in_dim, count
        # As nn.Linear starts, which is DINO's: the rows' length, about .58, sets how fast they turn.
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(count, in_dim).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.ones(count, 1)) if trainable_scale else None

    def rows(self) -> Tensor:
        """The weight as used: g_k v_k / |v_k|, [K, in_dim]."""
        rows = _unit(self.weight)
        return rows if self.scale is None else self.scale * rows

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_unit(x), self.rows())


class SwAVPrototypes(nn.Module):
    """Prototypes put back to unit length after each optimizer step (SwAV, arXiv 2006.09882).

    Unlike in `Prototypes` the optimizer may lengthen a row, until `commit` normalises the stored weight. It
    has the methods of a staged state: who owns the step calls `commit` once per executed optimizer step,
    which is the same as SwAV's normalising before each forward.

    Args:
        in_dim: features of the input, normalised here.
        count: number of prototypes K.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, in_dim: int, count: int) -> None:
        super().__init__()
        _check_sizes(in_dim, count)
        self.in_dim, self.out_dim = in_dim, count
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(_unit(torch.empty(count, in_dim).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_unit(x), self.weight)

    def observe(self) -> None:
        """Nothing: what is committed depends on the weight alone."""

    @torch.no_grad()
    def commit(self) -> None:
        """Puts the rows back to unit length."""
        self.weight.copy_(_unit(self.weight))

    def discard(self) -> None:
        """Nothing: a skipped step has left the rows as they were."""


class DINOHead(nn.Module):
    """MLP, bottleneck, prototypes: [..., in_dim] -> logits [..., prototypes] (DINO, arXiv 2104.14294).

    The defaults are DINO's for ViTs; iBOT and DINOv2 differ in sizes only. The parameters of `last_layer` are
    those that the three methods freeze at first.

    Args:
        in_dim: features of the input.
        hidden_dim: features of the hidden layers.
        bottleneck_dim: features that the prototypes see.
        prototypes: number of logits K.
        layers: number of linear layers before the prototypes.
        norm: norm after each hidden layer.
        trainable_scale: learn the length of each prototype, see `Prototypes`.

    Attributes:
        multiplies: whether the prototypes are multiplied with; False returns the unit bottleneck [..., bottleneck_dim],
            for a loss that takes both (`divergences.prototypes`).
    """

    def __init__(
        self,
        in_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        prototypes: int = 65536,
        layers: int = 3,
        norm: Norm | None = None,
        trainable_scale: bool = False,
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, prototypes
        self.mlp = MLP(in_dim, hidden_dim, bottleneck_dim, layers=layers, norm=norm, activation="gelu", init_std=0.02)
        self.last_layer = Prototypes(bottleneck_dim, prototypes, trainable_scale=trainable_scale)
        self.multiplies = True

    def forward(self, x: Tensor) -> Tensor:
        bottleneck: Tensor = self.mlp(x)
        return self.last_layer(bottleneck) if self.multiplies else _unit(bottleneck)


class MultiHead(nn.Module):
    """Several heads on the same features: x -> [head(x) for each head].

    Raises:
        ValueError: no heads.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads: got none, allowed is at least one module")
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(x) for head in self.heads]


def _unit(x: Tensor) -> Tensor:
    return unit(x).to(x.dtype)


def _check_sizes(in_dim: int, count: int) -> None:
    for name, size in (("in_dim", in_dim), ("count", count)):
        if size < 1:
            raise ValueError(f"{name}: got {size}, allowed are whole numbers from 1")
