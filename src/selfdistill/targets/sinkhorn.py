"""Balanced assignment of samples to prototypes."""

import math

import torch
from torch import Tensor

from selfdistill.distributed import all_reduce_max, all_reduce_sum

__all__ = ["sinkhorn"]


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp codes of SwAV (arXiv 2006.09882), over the samples of all ranks.

    Starts from Q = exp(scores / epsilon); each iteration scales every prototype to the same mass, then every
    sample to mass 1. The last step is the samples': each row is a distribution, prototypes are balanced as
    far as the iterations go.

    Finite for any finite scores, however large: prototypes and samples are shifted by their largest before the
    exponential, and afterwards no mass can vanish. A prototype of mass 1 has an entry >= 1/N, in a row of mass <= K,
    so it keeps at least 1/(NK) when samples are scaled; the same holds with the roles exchanged.

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
    # Every prototype has a sample now where it is 0, its largest, and so has every sample once its own largest is taken
    # off and kept as a factor, at most 1: no mass can vanish, and one exponential is enough.
    largest = codes.amax(1, keepdim=True)
    codes.sub_(largest).exp2_()
    # From here on as factors of prototypes and of samples, which reads the codes twice an iteration and writes nothing.
    samples = largest.squeeze(1).exp2_()
    with torch.autocast(codes.device.type, enabled=False):
        for _ in range(iterations):
            prototypes = all_reduce_sum(samples @ codes).reciprocal_()
            # A factor of all of them cancels, and would grow by N/K an iteration.
            prototypes /= prototypes.mean()
            samples = (codes @ prototypes).reciprocal_()
    return codes.mul_(prototypes).mul_(samples[:, None])
