"""Features of different images are kept apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from selfdistill.objectives.base import Coupling, Objective
from selfdistill.regularizers import koleo

if TYPE_CHECKING:
    from selfdistill.methods import Outputs, SelfDistillModule
    from selfdistill.views import Views


class KoLeo(Objective):
    """``L = mean over crops of −mean_i log(min_{j≠i} ‖x̂_i − x̂_j‖ + eps)`` (arXiv 1806.03198), x̂ unit features.

    Over the student's crops of the first one's size, each by itself: two views of an image ought to be close. The
    batch is this rank's. DINOv2 (arXiv 2304.07193) adds its two large crops at 0.1 each: that is a weight of 0.2.

    Args:
        eps: added to the distance, > 0.
    """

    name: ClassVar[str] = "koleo"
    couples: ClassVar[Coupling | None] = "KoLeo"

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"objective.koleo.eps: {eps} given, allowed is a number above 0")
        self.eps = eps

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Outputs, targets: Any
    ) -> dict[str, Tensor]:
        crops = views.student
        large = [
            features for crop, features in zip(crops, predictions.features, strict=True) if crop.shape == crops[0].shape
        ]
        return {"koleo": torch.stack([koleo(features, self.eps) for features in large]).mean()}
