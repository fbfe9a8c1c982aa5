"""Products and lengths of rows, by the quickest way there is."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_LENGTH = 1e-6


@torch.no_grad()
def row_products(rows: Tensor, others: Tensor) -> Tensor:
    """``rows @ others.T`` in the type of both: ``[N, D], [M, D] -> [N, M]``, without gradient."""
    one_dnn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if rows.device.type == "cpu" and rows.dtype == others.dtype == torch.float32 and one_dnn:
        # Through oneDNN: half the time of the plain product on an AMD EPYC, to float32's rounding; not tried on Intel.
        return F.linear(rows.to_mkldnn(), others).to_dense()
    return rows @ others.T


def unit(x: Tensor) -> Tensor:
    """``x`` at unit length along its last dimension, in at least float32: ``[..., D] -> [..., D]``.

    A vector shorter than 1e-6, DINOv2's least length rather than torch's 1e-12, is divided by that: zero stays zero,
    and the gradient of a vanishing vector is bounded. Value and gradient of ``F.normalize`` in half of its passes over
    memory, which count where x are 65,536 prototypes. There is no second derivative.

    Raises:
        RuntimeError: in a backward with create_graph=True.
    """
    # Squares of small float16 numbers underflow.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rows: Tensor = _Unit.apply(wide)
    return rows


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        shrink = length.clamp_min(_LEAST_LENGTH).reciprocal_()
        rows = x * shrink
        # What lengthens a vector changes nothing, unless it is so short that it is not normalised.
        ctx.save_for_backward(rows, shrink, length > _LEAST_LENGTH)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("unit cannot be differentiated twice; drop create_graph=True")
        rows, shrink, normalised = ctx.saved_tensors
        along = torch.einsum("...d,...d->...", gradient, rows)[..., None] * normalised
        return torch.addcmul(gradient, rows, along, value=-1).mul_(shrink)
