"""Clipping of gradients by norm, over three kinds of parts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from selfdistill.optim.groups import NamedParameters, without_repeats
from selfdistill.sharding import local, norms


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
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in named:
        if parameter.grad is not None:
            part = {"global": "", "parameter": "", "module": _module_of(name)}[mode]
            parts.setdefault(part, []).append(parameter.grad)
    for gradients in parts.values():
        sizes = norms(gradients)
        if mode != "parameter":
            sizes = torch.linalg.vector_norm(sizes).expand(len(gradients))
        factors = (largest / (sizes + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], list(factors.unbind()))


def _module_of(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "student" else first
