"""Each dimension of the projections varies, and varies on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from selfdistill.objectives.base import Coupling, Need, Objective
from selfdistill.regularizers import variance_covariance

if TYPE_CHECKING:
    from selfdistill.methods import Outputs, SelfDistillModule
    from selfdistill.views import Views


class VarianceCovariance(Objective):
    """VICReg's two terms against collapse (arXiv 2105.04906, equations 1 to 4), each a mean over the student's crops.

    ``variance = mean_j max(0, γ − √(Var(z_j) + eps))``, ``covariance = ratio·Σ_{i≠j} Cov(z)_ij² / P``, over the images
    of all ranks. VICReg adds its two views at 25 and 1: a weight of 50 with the ratio 1/25. Memory grows with P²:
    not for logits of tens of thousands of prototypes.

    Args:
        ratio: ν/μ, what the covariance weighs beside the variance.
        variance_target: γ, the standard deviation asked for.
        eps: added to the variance.
    """

    name: ClassVar[str] = "variance_covariance"
    needs: ClassVar[frozenset[Need]] = frozenset({"projections"})
    couples: ClassVar[Coupling | None] = "variances over the batch"
    over_ranks: ClassVar[bool] = True

    def __init__(self, ratio: float = 0.04, variance_target: float = 1.0, eps: float = 1e-4) -> None:
        super().__init__()
        for argument, value in (("variance_target", variance_target), ("eps", eps)):
            if not value > 0:
                raise ValueError(
                    f"objective.variance_covariance.{argument}: {value} given, allowed is a number above 0"
                )
        if not ratio >= 0:
            raise ValueError(f"objective.variance_covariance.ratio: {ratio} given, allowed is 0 or more")
        self.ratio, self.variance_target, self.eps = ratio, variance_target, eps

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Outputs, targets: Any
    ) -> dict[str, Tensor]:
        crops = self.projections(predictions, len(views.student), views.batch_size)
        pairs = [variance_covariance(z, variance_target=self.variance_target, eps=self.eps) for z in crops]
        variance, covariance = (torch.stack(parts).mean() for parts in zip(*pairs, strict=True))
        return {"variance": variance, "covariance": self.ratio * covariance}
