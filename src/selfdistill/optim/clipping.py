"""Clipping of gradients by norm, over three kinds of parts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from selfdistill.optim.groups import NamedParameters, without_repeats


def clip_gradients(
    named_parameters: NamedParameters, largest: float, mode: Literal["global", "parameter", "module"]
) -> None:
    """Multiply the gradients of each part whose norm is over ``largest`` by ``largest / (norm + 1e-6)``.

    Nothing is read back from the device. A part whose norm is not finite becomes non-finite as a whole.

    Args:
        named_parameters: parameters without a gradient are passed over.
        largest: above 0.
        mode: a part is everything (``global``), one parameter (``parameter``; DINO, arXiv 2104.14294) or one
            module (``module``; DINOv2, arXiv 2304.07193): what shares the first part of its name, or the
            first two below ``student``.
    """
    named = without_repeats(named_parameters)
    if mode == "parameter":
        gradients = [parameter.grad for _, parameter in named if parameter.grad is not None]
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            factors = (largest / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, list(factors.unbind()))
        return
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named:
        parts.setdefault("" if mode == "global" else _module_of(name), []).append(parameter)
    for parameters in parts.values():
        nn.utils.clip_grad_norm_(parameters, largest)


def _module_of(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "student" else first
