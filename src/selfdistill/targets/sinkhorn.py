"""Balanced assignment of samples to prototypes."""

import math

import torch
from torch import Tensor

from selfdistill.distributed import all_reduce_max, all_reduce_sum

__all__ = ["sinkhorn"]

# Codes that are summed at a time: on a CPU what a core's cache holds; elsewhere launches count.
_CPU_CHUNK = 2**16
_DEVICE_CHUNK = 2**24


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp codes of SwAV (arXiv 2006.09882), over the samples of all ranks.

    Starts from Q = exp(scores / epsilon); each iteration scales every prototype to the same mass, then every
    sample to mass 1. The last step is the samples': each row is a distribution, prototypes are balanced as
    far as the iterations go.

    Finite for any finite scores, however large: the first iteration works on logarithms, and afterwards no
    mass can vanish. A prototype of mass 1 has an entry >= 1/N, in a row of mass <= K, so it keeps at least
    1/(NK) when samples are scaled; the same holds with the roles exchanged.

    Args:
        scores: [N, K] similarities of samples to prototypes. N may differ between ranks, also be 0.
        epsilon: Entropic regularisation, > 0: the smaller, the harder the codes. SwAV uses .05.
        iterations: At least 1. SwAV uses 3.

    Returns:
        [N, K] codes of this rank's samples, without gradient, in float32 (float64 for float64 scores).

    Raises:
        ValueError: An argument has the wrong shape or is out of range.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"scores must have shape [samples, prototypes >= 2], got {list(scores.shape)}; "
            "flatten leading dimensions into samples"
        )
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and > 0, got {epsilon}; SwAV uses 0.05")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}; SwAV uses 3")

    logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # A factor per prototype cancels in the first scaling: each may be shifted by its own global maximum.
    peak = logits.amax(0) if len(logits) else logits.new_full(logits.shape[1:], -math.inf)
    # To the base 2: on a CPU exp takes four times exp2.
    codes = (logits - all_reduce_max(peak)).div_(epsilon * math.log(2))
    # A few rows at a time: what is made only to be summed need not exist as a whole.
    chunk = _CPU_CHUNK if codes.device.type == "cpu" else _DEVICE_CHUNK
    parts = codes.split(max(1, chunk // codes.shape[1]))
    mass = torch.stack([part.exp2().sum(0) for part in parts]).sum(0)
    codes -= all_reduce_sum(mass).log2_()
    codes.sub_(codes.amax(1, keepdim=True)).exp2_()
    # From here on as factors of prototypes and of samples, which reads the codes twice an iteration and writes nothing.
    prototypes = codes.new_ones(codes.shape[1])
    with torch.autocast(codes.device.type, enabled=False):
        samples = (codes @ prototypes).reciprocal_()
        for _ in range(iterations - 1):
            prototypes = all_reduce_sum(samples @ codes).reciprocal_()
            # A factor of all of them cancels, and would grow by N/K an iteration.
            prototypes /= prototypes.mean()
            samples = (codes @ prototypes).reciprocal_()
    return codes.mul_(prototypes).mul_(samples[:, None])
