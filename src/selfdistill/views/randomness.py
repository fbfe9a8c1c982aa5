"""Random numbers that are a pure function of a key: no generator state to save, none to get out of step.

A view must depend on (seed, epoch, sample, crop) alone. Whatever batch, worker, rank or accumulation window a sample
falls into, and whether or not the run was resumed, it then gets the same view. The numbers come from the output
function of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) applied to a
counter; 64-bit integer arithmetic wraps in torch as it does in C, so every device draws the same integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def _signed(value: int) -> int:
    """The int64 with the same 64 bits: torch has no arithmetic on uint64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """SplitMix64's output function on one 64-bit integer: a bijection that spreads every input bit over the output."""
    value &= _MASK
    for shift, multiplier in _MULTIPLIERS:
        value = ((value ^ (value >> shift)) * multiplier) & _MASK
    return value ^ (value >> 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own on int64 drags the sign along."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(value: Tensor) -> Tensor:
    for shift, multiplier in _MULTIPLIERS:
        value = (value ^ _shift_right(value, shift)) * _signed(multiplier)
    return value ^ _shift_right(value, 31)


def key(*parts: int) -> int:
    """Fold integers into one 64-bit key; order matters and (1, 0) differs from (1,)."""
    folded = 0
    for part in parts:
        folded = mix((folded + _GOLDEN) ^ mix(part + _GOLDEN))
    return folded


def bits(base: int, index: Tensor, count: int) -> Tensor:
    """64 random bits for each sample and draw.

    Args:
        base: key of everything that the samples share, see `key`.
        index: [B] int64, the samples' indices in the data set.
        count: number of draws a sample. Draw `j` is the same whatever `count` is.

    Returns:
        [B, count] int64, all 64 bits uniform.
    """
    start = _mix_tensor(index.to(torch.int64) * _signed(_GOLDEN) + _signed(base))
    steps = torch.arange(1, count + 1, device=index.device, dtype=torch.int64) * _signed(_GOLDEN)
    return _mix_tensor(start[:, None] + steps)


def uniform(base: int, index: Tensor, count: int) -> Tensor:
    """[B, count] float32, uniform on the 2^24 multiples of 2^-24 in [0, 1). Arguments as `bits`."""
    return _shift_right(bits(base, index, count), 40).to(torch.float32) * 2.0**-24


def normal(base: int, index: Tensor, count: int) -> Tensor:
    """[B, count] float32, standard normal by Box and Muller's transform (no value beyond 5.8). Arguments as `bits`."""
    drawn = bits(base, index, count)
    radius = ((_shift_right(drawn, 40) + 1).to(torch.float32) * 2.0**-24).log_().mul_(-2).sqrt_()
    angle = (drawn & 0xFFFFFF).to(torch.float32) * (2 * math.pi * 2.0**-24)
    return radius * angle.cos_()
