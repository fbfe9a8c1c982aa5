"""How many dimensions features use: two effective ranks, each named for what it is.

Gram matrices are built and decomposed in float64 on their smaller side: a Gram squares the condition
number, which float32 would answer with a floor of spurious dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(x: Tensor) -> Tensor:
    """Effective rank of the covariance: exp of the entropy of its normalised eigenvalues.

    exp(−Σ p log p), p = λ / Σλ, with λ the eigenvalues of the centred covariance (Roy and Vetterli, 2007,
    there with singular values of the matrix itself, which is :func:`rankme`). At most min(N − 1, D).

    Args:
        x: features ``[N, D]``, of any floating type.

    Returns:
        A number from 1 (all features on one line) to D (isotropic). Features without variation, that is
        below their dtype's rounding or 1e-6 of their size, give 1. Not finite in, NaN out.
    """
    require_matrix("x", x)
    wide = widen(x)
    rank = covariance_rank(
        _gram_eigenvalues(wide - wide.mean(0)), energy=wide.square().sum(), resolution=resolution(x.dtype)
    )
    return narrow(rank, x.dtype)


def rankme(x: Tensor, eps: float = 1e-7) -> Tensor:
    """RankMe: exp of the entropy of the normalised singular values, uncentred (arXiv 2210.02885, eq. 1, 2).

    exp(−Σ p log p), p = σ / ‖σ‖₁ + eps, over the min(N, D) singular values of ``x``. A common offset of the
    features counts as one strong dimension. The paper uses 25,600 images; comparable only at equal N.

    Args:
        x: features ``[N, D]``, of any floating type.
        eps: the paper's 1e-7 for float32. It biases rank one upwards: D = 2048 gives 1.0033.

    Returns:
        A number from about 1 to min(N, D). Not finite in, NaN out.
    """
    require_matrix("x", x)
    return narrow(rankme_of_gram(_gram_eigenvalues(widen(x)), eps), x.dtype)


def widen(x: Tensor) -> Tensor:
    """``x`` in float64, on the CPU where its device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def narrow(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 result as float32, or as float64 where the input was."""
    return value.to(torch.promote_types(dtype, torch.float32))


def resolution(dtype: torch.dtype) -> float:
    """Relative size below which variation of features of ``dtype`` is noise."""
    return max(torch.finfo(dtype).eps, 1e-6) if dtype.is_floating_point else 1e-6


def require_matrix(name: str, x: Tensor) -> None:
    """Refuse what is not ``[N, D]`` with N and D ≥ 1."""
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"{name} must be [N, D], N and D ≥ 1, got {tuple(x.shape)}: flatten or pool features first")


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues, ascending, of a symmetric non-negative float64 matrix; rounding noise is set to 0.

    A matrix that is not finite gives NaN where LAPACK would raise: a monitor must outlive divergence.
    """
    finite = matrix.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, matrix, 0.0)).clamp_min(0)
    noise = len(matrix) * torch.finfo(matrix.dtype).eps * values[-1]
    return torch.where(finite, torch.where(values > noise, values, 0.0), torch.nan)


def covariance_rank(values: Tensor, *, energy: Tensor, resolution: float) -> Tensor:
    """exp of the entropy of ``values``; 1 where they are but rounding of features of Σx² = ``energy``."""
    total = values.sum()
    share = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    share = torch.where(total <= resolution**2 * energy, 0.0, share)
    return torch.special.entr(share).sum().exp()


def rankme_of_gram(values: Tensor, eps: float) -> Tensor:
    """RankMe from the eigenvalues of the uncentred Gram matrix."""
    sigma = values.sqrt()
    share = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + eps
    return torch.special.entr(share).sum().exp()


def _gram_eigenvalues(x: Tensor) -> Tensor:
    return eigenvalues(x.T @ x if x.shape[0] > x.shape[1] else x @ x.T)
