"""Terms that keep representations spread out, whatever the targets are.

All compute in float32 (float64 inputs stay float64), with autocast off where it would reach them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.distributed import all_reduce_mean_grad, all_reduce_sum, world_size

__all__ = ["koleo", "me_max", "variance_covariance"]


def koleo(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko entropy term on the sphere (arXiv 1806.03198): spreads samples evenly.

    −mean_i log(min_{j≠i} ‖x_i − x_j‖ + eps)

    Rows are L2-normalised first. −ln 2 for two opposite points, large where points crowd together. Over the
    rows of this rank only, as in DINOv2; do not mix views of one image in a call. Exact duplicates add −log
    eps and, like zero rows, get no gradient: no direction leads away from a copy. Differentiable once.

    Args:
        features: [N, D], N >= 2.
        eps: Added to each distance, > 0.

    Returns:
        Scalar.

    Raises:
        ValueError: An argument has the wrong shape or is out of range.
    """
    _check_rows("features", features)
    _check_positive("eps", eps)
    with torch.autocast(features.device.type, enabled=False):
        value: Tensor = _KoLeo.apply(_at_least_float32(features), eps)
        return value


class _KoLeo(torch.autograd.Function):
    """The gradient in a third of the passes over the features that autograd makes.

    With unit rows u, n(i) the nearest of i, and d_i their distance, it is in u_i, apart from the factor −1/N,
    g_i = Σ over i's own pair and all k with n(k) = i of ±(u_i − u_n(i)) / (d (d + eps)); in x_i what is left of g_i
    at right angles to u_i, over ‖x_i‖.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, eps: float) -> Tensor:
        norm_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True)
        # A zero row has no direction to correct; a gradient divided by eps would overflow float16.
        scale_N1 = torch.where(norm_N1 <= eps, 0.0, norm_N1.clamp_min(eps).reciprocal())
        unit_ND = x_ND * scale_N1
        nearest_N = _nearest(unit_ND)
        difference_ND = unit_ND - unit_ND.index_select(0, nearest_N)
        distance_N = torch.linalg.vector_norm(difference_ND, dim=1)
        # Below the resolution of unit vectors a difference is rounding, which 1/distance would blow up.
        apart_N = distance_N > 8 * torch.finfo(x_ND.dtype).eps
        slope_N = torch.where(apart_N, -1 / (len(x_ND) * distance_N * (distance_N + eps)), 0.0)
        ctx.save_for_backward(unit_ND, nearest_N, difference_ND, slope_N, scale_N1)
        return -(distance_N + eps).log().mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("koleo: its gradient has no gradient of its own; leave create_graph=True out")
        unit_ND, nearest_N, difference_ND, slope_N, scale_N1 = ctx.saved_tensors
        pairs_ND = difference_ND * (slope_N * gradient)[:, None]
        g_ND = pairs_ND.index_add(0, nearest_N, pairs_ND, alpha=-1)
        return torch.addcmul(g_ND, unit_ND, (g_ND * unit_ND).sum(1, keepdim=True), value=-1) * scale_N1, None


def me_max(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean-entropy maximisation of MSN (arXiv 2204.07141): keeps all clusters in use.

    log K − H(p̄), p̄ the mean prediction over the samples of all ranks

    In [0, log K]: 0 when samples use all clusters equally, log K when all fall into one. Ranks may
    hold different numbers of samples.

    Args:
        logits: [N, K], N >= 1, K >= 2.
        temperature: > 0, applied to the logits. MSN uses .1.

    Returns:
        Scalar, the same on every rank; gradients as DDP expects them (see `selfdistill.distributed`).

    Raises:
        ValueError: An argument has the wrong shape or is out of range.
    """
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape [samples >= 1, clusters >= 2], got {list(logits.shape)}")
    _check_positive("temperature", temperature)
    p_NK = F.softmax(_at_least_float32(logits) / temperature, dim=1)
    samples = all_reduce_sum(p_NK.new_full((), len(p_NK)))
    mean_K = all_reduce_mean_grad(p_NK.sum(0)) * (world_size() / samples)
    # A cluster whose probabilities all underflow adds nothing, and has no gradient to lose.
    log_mean_K = mean_K.clamp_min(torch.finfo(mean_K.dtype).tiny).log()
    # Rounding may end just below the bound.
    return (math.log(logits.shape[1]) + (mean_K * log_mean_K).sum()).clamp_min(0)


def variance_covariance(x: Tensor, *, variance_target: float = 1.0, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """The two terms of VICReg that prevent collapse (arXiv 2105.04906, eq. 1-4), over the rows of all ranks.

    v = mean_j max(0, γ − sqrt(Var(x_j) + eps));  c = Σ_{i≠j} Cov(x)_ij² / D.  Both moments divide by N − 1.
    The weights are the caller's: VICReg gives 25 to v and 1 to c, for each of the two views.

    Args:
        x: [N, D], N >= 2, not normalised.
        variance_target: γ, the standard deviation asked for, > 0.
        eps: Added to the variance, > 0.

    Returns:
        v and c, scalars, the same on every rank; gradients as DDP expects them.

    Raises:
        ValueError: An argument has the wrong shape or is out of range.
    """
    _check_rows("x", x)
    _check_positive("variance_target", variance_target)
    _check_positive("eps", eps)
    with torch.autocast(x.device.type, enabled=False):
        x_ND = _at_least_float32(x)
        samples = all_reduce_sum(x_ND.new_full((), len(x_ND)))
        # Detached at no loss: squared deviations have zero derivative in the mean they are taken from.
        centered_ND = x_ND - all_reduce_sum(x_ND.sum(0)) / samples
        scale = world_size() / (samples - 1)
        variance_D = scale * all_reduce_mean_grad(centered_ND.square().sum(0))
        covariance_DD = scale * all_reduce_mean_grad(centered_ND.T @ centered_ND)
        variance = F.relu(variance_target - (variance_D + eps).sqrt()).mean()
        return variance, 2 * covariance_DD.triu(1).square().sum() / x.shape[1]


@torch.no_grad()
def _nearest(x_ND: Tensor) -> Tensor:
    """[N] the row most similar to each, itself excepted."""
    # Of a symmetric matrix half is enough, where kernels are not waited for longer than products take.
    size = 128 if x_ND.device.type == "cpu" else len(x_ND)
    # Any finite value could tie with a true neighbour: opposite points have similarity −1.
    best_N = x_ND.new_full((len(x_ND),), -math.inf)
    nearest_N = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
    for start in range(0, len(x_ND), size):
        block_BM = x_ND[start : start + size] @ x_ND[start:].T  # B rows with themselves and all behind them
        rows, behind = slice(start, start + len(block_BM)), slice(start + len(block_BM), None)
        block_BM[:, : len(block_BM)].fill_diagonal_(-math.inf)
        found = [(rows, block_BM.max(1))]
        if behind.start < len(x_ND):
            found.append((behind, block_BM[:, len(block_BM) :].max(0)))
        for where, (similarity, index) in found:
            index += start
            nearest_N[where] = torch.where(similarity > best_N[where], index, nearest_N[where])
            best_N[where] = torch.maximum(similarity, best_N[where])
    return nearest_N


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_rows(name: str, x: Tensor) -> None:
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise ValueError(f"{name} must have shape [samples >= 2, features], got {list(x.shape)}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value}")
