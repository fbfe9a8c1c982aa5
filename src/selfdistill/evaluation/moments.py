"""Measures that stream over batches and ranks: sums that add up, from which the measures follow exactly."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from selfdistill.distributed import all_reduce_sum
from selfdistill.evaluation.features import unit_rows
from selfdistill.evaluation.spectrum import (
    covariance_rank,
    eigenvalues,
    rankme_of_gram,
    require_matrix,
    resolution,
    widen,
)


class FeatureMoments:
    """Rank and spread of features seen batch by batch, equal to those of all of them at once.

    Holds, in float64, the count, Σx, Σxxᵀ, and Σu, Σu² of the rows u = x / ‖x‖: D² numbers whatever N.
    Results are float32 scalars; before the first row they are those of a collapsed network.

    Args:
        dim: D.
        device: of the sums; batches are brought to it. The CPU in place of MPS, which has no float64.
    """

    def __init__(self, dim: int, device: torch.device | str | None = None) -> None:
        self.dim = dim
        self.count = 0
        self.resolution = 1e-6

        if device is not None and torch.device(device).type == "mps":
            device = "cpu"

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.sum, self.outer, self.unit_sum, self.unit_square = (
            zeros(dim),
            zeros(dim, dim),
            zeros(dim),
            zeros(dim),
        )

    @torch.no_grad()
    def update(self, x: Tensor) -> Self:
        """Add features ``[N, D]``."""
        require_matrix("x", x)
        if x.shape[1] != self.dim:
            raise ValueError(f"x has {x.shape[1]} dimensions, these moments {self.dim}: make new ones")
        wide = widen(x).to(self.sum.device)
        unit = unit_rows(wide)
        self.count += len(x)
        self.resolution = max(self.resolution, resolution(x.dtype))
        self.sum += wide.sum(0)
        self.outer.addmm_(wide.T, wide)
        self.unit_sum += unit.sum(0)
        self.unit_square += unit.square().sum(0)
        return self

    def merge(self, other: FeatureMoments) -> Self:
        """Add what ``other`` has seen."""
        if other.dim != self.dim:
            raise ValueError(f"other has {other.dim} dimensions, these moments {self.dim}: merge equals")
        self.count += other.count
        self.resolution = max(self.resolution, other.resolution)
        for mine, theirs in zip(self._sums(), other._sums(), strict=True):
            mine += theirs.to(mine.device)
        return self

    def all_reduce(self) -> FeatureMoments:
        """The moments over all ranks, in one collective; the own ones stay as they are."""
        parts = [torch.tensor([self.count], dtype=torch.float64, device=self.sum.device), *self._sums()]
        reduced = all_reduce_sum(torch.cat([part.flatten() for part in parts]))
        total = FeatureMoments(self.dim, self.sum.device)
        count, *sums = reduced.split([part.numel() for part in parts])
        total.count, total.resolution = int(count.item()), self.resolution
        for mine, summed in zip(total._sums(), sums, strict=True):
            mine.copy_(summed.view_as(mine))
        return total

    def effective_rank(self) -> Tensor:
        """See :func:`selfdistill.evaluation.geometry.effective_rank`."""
        mean = self.sum / max(self.count, 1)
        values = eigenvalues(self.outer - torch.outer(self.sum, mean))
        return covariance_rank(values, energy=self.outer.trace(), resolution=self.resolution).float()

    def rankme(self, eps: float = 1e-7) -> Tensor:
        """See :func:`selfdistill.evaluation.geometry.rankme`."""
        values = eigenvalues(self.outer)
        return rankme_of_gram(values[-min(max(self.count, 1), self.dim) :], eps).float()

    def feature_std(self) -> Tensor:
        """See :func:`selfdistill.evaluation.geometry.feature_std`."""
        count = max(self.count, 1)
        variance = self.unit_square / count - (self.unit_sum / count).square()
        return (variance.clamp_min(0).sqrt().mean() * self.dim**0.5).float()

    def mean_cosine(self) -> Tensor:
        """See :func:`selfdistill.evaluation.geometry.mean_cosine`."""
        return cosine_of_sums(self.unit_sum, self.unit_square.sum(), self.count).float()

    def _sums(self) -> tuple[Tensor, ...]:
        return self.sum, self.outer, self.unit_sum, self.unit_square


def cosine_of_sums(unit_sum: Tensor, unit_square: Tensor, count: int) -> Tensor:
    """Mean of u_i · u_j over i ≠ j from Σu and Σ‖u‖²; 1 with fewer than two rows."""
    if count < 2:
        return torch.ones_like(unit_square)
    return (unit_sum.square().sum() - unit_square) / (count * (count - 1))


class PrototypeEntropy(NamedTuple):
    """Entropies of answers over K prototypes, in nats (0-dim tensors).

    Attributes:
        mean_entropy: entropy of the mean answer H(E p), from ln K (all prototypes used alike) to 0 (one
            prototype takes all).
        entropy_mean: mean of the entropies E H(p), from 0 (one-hot answers) to ln K (uniform ones).
            Never above ``mean_entropy``; the difference is the information between image and prototype.
    """

    mean_entropy: Tensor
    entropy_mean: Tensor


class PrototypeUsage:
    """:func:`~selfdistill.evaluation.geometry.prototype_entropy` over batches and ranks.

    Args:
        prototypes: K.
        device: of the sums.
    """

    def __init__(self, prototypes: int, device: torch.device | str | None = None) -> None:
        # Σp, then Σ H(p) and the count: one tensor, one collective.
        self._sums = torch.zeros(prototypes + 2, dtype=torch.float32, device=device)

    @torch.no_grad()
    def update(self, x: Tensor, *, temperature: float = 1.0, probabilities: bool = False) -> Self:
        """Add answers ``[…, K]``: logits, divided by ``temperature``, or ``probabilities``."""
        if x.ndim == 0 or x.shape[-1] != len(self._sums) - 2 or x.numel() == 0:
            raise ValueError(f"x must be […, {len(self._sums) - 2}] and not empty, got {tuple(x.shape)}")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: give a number above 0")
        x = x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
        p = x if probabilities else (x / temperature).softmax(-1)
        entropy = torch.special.entr(p).sum()
        self._sums += torch.cat([p.sum(0), torch.stack([entropy, entropy.new_tensor(len(p))])])
        return self

    def all_reduce(self) -> PrototypeUsage:
        """The usage over all ranks; the own one stays as it is."""
        total = PrototypeUsage(len(self._sums) - 2, self._sums.device)
        total._sums = all_reduce_sum(self._sums.clone())
        return total

    def entropy(self) -> PrototypeEntropy:
        """Both entropies of all answers seen; 0 before the first."""
        count = self._sums[-1].clamp_min(1)
        return PrototypeEntropy(torch.special.entr(self._sums[:-2] / count).sum(), self._sums[-2] / count)
