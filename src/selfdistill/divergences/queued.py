"""What a query shares with a long queue, without the similarities to all of it.

Shapes: N queries, K rows of the queue, C of a chunk, P projections.
"""

import math
from typing import Any

import torch
from torch import Tensor

from selfdistill.divergences.functional import check_positive

__all__ = ["queue_logsumexp"]

# Rows of the queue at a time: their products with the queries stay in a core's cache; on a device, launches count.
_CPU_CHUNK = 4096
_DEVICE_CHUNK = 2**16


# Traced, the loop over chunks would be unrolled.
@torch.compiler.disable
def queue_logsumexp(queries: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """ln Σ_k exp(q·n_k / T), the negatives of InfoNCE (MoCo, arXiv 1911.05722, eq. 1).

    Exact in value and gradient. The gradient, the mean of the queue's rows by their share, is gathered in the
    same pass: the queue is read once, and no [N, K] is kept. The queue gets no gradient, and there is no second
    derivative: backward with create_graph=True is an error.

    Args:
        queries: q [..., P].
        queue: n [K, P].
        temperature: T > 0.

    Returns:
        [...], in float32 (float64 if an input is).

    Raises:
        ValueError: The shapes do not fit, or the temperature is out of range.
        RuntimeError: In a backward with create_graph=True.
    """
    check_positive("temperature", temperature)
    if queries.ndim < 1 or queue.ndim != 2 or queries.shape[-1] != queue.shape[1] or len(queue) < 1:
        raise ValueError(
            "queries must have shape [..., projections] and queue [rows >= 1, projections], "
            f"got {list(queries.shape)} and {list(queue.shape)}"
        )
    if torch.is_grad_enabled() and queries.requires_grad:
        value: Tensor = _QueueLogSumExp.apply(queries, queue, temperature)
        return value
    return _value_and_gradient(queries, queue, temperature, with_gradient=False)[0]


class _QueueLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, queue: Tensor, temperature: float) -> Tensor:
        value, gradient = _value_and_gradient(queries, queue, temperature, with_gradient=True)
        ctx.dtype = queries.dtype
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` would let create_graph=True pass and give second derivatives of zero.
        if torch.is_grad_enabled():
            raise RuntimeError("queue_logsumexp cannot be differentiated twice; drop create_graph=True")
        (gradient,) = ctx.saved_tensors
        return (gradient * scale.unsqueeze(-1)).to(ctx.dtype), None, None


@torch.no_grad()
def _value_and_gradient(
    queries: Tensor, queue: Tensor, temperature: float, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    dtype = torch.promote_types(torch.promote_types(queries.dtype, queue.dtype), torch.float32)
    # To the base 2: on a CPU exp takes four times exp2.
    q_NP = queries.reshape(-1, queries.shape[-1]).to(dtype) / (temperature * math.log(2))
    peak_N1 = q_NP.new_full((len(q_NP), 1), -torch.inf)
    mass_N1, pulled_NP = torch.zeros_like(peak_N1), torch.zeros_like(q_NP)
    with torch.autocast(queries.device.type, enabled=False):
        for chunk_CP in queue.split(_CPU_CHUNK if queue.device.type == "cpu" else _DEVICE_CHUNK):
            rows_CP = chunk_CP.to(dtype)
            share_NC = q_NP @ rows_CP.T
            before_N1, peak_N1 = peak_N1, torch.maximum(peak_N1, share_NC.amax(1, keepdim=True))
            fade_N1 = (before_N1 - peak_N1).exp2_()
            share_NC.sub_(peak_N1).exp2_()
            mass_N1.mul_(fade_N1).add_(share_NC.sum(1, keepdim=True))
            if with_gradient:
                pulled_NP.mul_(fade_N1).addmm_(share_NC, rows_CP)
    value = (peak_N1 + mass_N1.log2()).mul_(math.log(2)).view(queries.shape[:-1])
    gradient = pulled_NP.div_(mass_N1 * temperature).view(queries.shape) if with_gradient else None
    return value, gradient
