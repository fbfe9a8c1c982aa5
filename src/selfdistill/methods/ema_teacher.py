"""The core loop: a student learns from its own moving average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn

from selfdistill.divergences import L2, Divergence
from selfdistill.heads import MLP
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Schedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views


class EMATeacher(SelfDistillModule[Outputs, Outputs]):
    """``L = D(f_s(x), f_t(x))`` with θ_t ← τ·θ_t + (1−τ)·θ_s: Mean Teacher without labels (arXiv 1703.01780).

    f is backbone and projector; the projector ends in a batch norm without scale and shift, which keeps
    the projections from becoming one constant vector where no predictor and no negatives do.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the projector's hidden layer.
        out_dim: P, width of the projections.
        compare: ``crossed``: student and teacher see different views of an image; ``same``: the same
            input, which teaches only if the student is processed differently (the tower's noise, drop path).
        divergence: D ``[N, P], [N, P] -> [N]``.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``distill``).
        objectives: further losses.
    """

    evaluates = "teacher"

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        hidden_dim: int = 2048,
        out_dim: int = 256,
        compare: Literal["crossed", "same"] = "crossed",
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if compare not in ("crossed", "same"):
            raise ValueError(f"method.compare: {compare!r} given, allowed is crossed or same")
        backbone = as_backbone(backbone)
        projector = MLP(backbone.dim, hidden_dim, out_dim, output_bias=False, output_norm="batch")
        super().__init__(
            Tower(backbone, projector),
            teacher=teacher or TeacherPolicy.ema(0.999, shape="constant", running_mean=True, mode="train"),
            optimizer=optimizer or OptimizerRecipe("adamw", 1e-3, weight_decay=0.05, warmup="5 epochs"),
            weights=weights,
            objectives=objectives,
            divergence=divergence or L2(),
        )
        self.same_view = compare == "same"

    def targets(self, views: Views) -> Outputs:
        features, projections = self.teaching_tower(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        features, projections = self.student(views.student)
        return Outputs(projections, features.pooled, views.same if self.same_view else views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        return {"distill": self.compare(self.divergence, predictions, targets)}
