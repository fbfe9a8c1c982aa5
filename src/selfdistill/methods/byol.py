"""BYOL: the student predicts what its moving average says of another view."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from selfdistill.divergences import Divergence, NormalizedL2
from selfdistill.heads import MLP
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Schedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views


class BYOL(SelfDistillModule[Outputs, Outputs]):
    """Bootstrap your own latent (arXiv 2006.07733).

    ``L = ‖q̂(z_1) − ẑ'_2‖² + ‖q̂(z_2) − ẑ'_1‖²`` (equation 2, hats are unit vectors), q the predictor that
    only the student has, z' the teacher's projections; τ_k = 1 − (1 − τ_0)(cos(πk/K) + 1)/2. The teacher
    sees batch statistics. Defaults are the published 100-epoch preset.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the hidden layer of projector and predictor.
        out_dim: P, width of the projections.
        divergence: D between prediction and target ``[N, P]``; the paper's by default.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``distill``).
        objectives: further losses.
    """

    evaluates = "student"

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        projector = MLP(backbone.dim, hidden_dim, out_dim, output_bias=False)
        super().__init__(
            Tower(backbone, projector),
            teacher=teacher or TeacherPolicy.ema(0.99, 1.0, mode="train"),
            optimizer=optimizer
            or OptimizerRecipe("lars", 0.45, weight_decay=1e-6, scaling="linear", warmup="10 epochs"),
            weights=weights,
            objectives=objectives,
            divergence=divergence or NormalizedL2(),
        )
        self.predictor = MLP(out_dim, hidden_dim, out_dim, output_bias=False)

    def targets(self, views: Views) -> Outputs:
        features, projections = self.teaching_tower(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        features, projections = self.student(views.student)
        return Outputs(self.predictor(projections), features.pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        # the paper adds the two directions
        return {"distill": 2 * self.compare(self.divergence, predictions, targets)}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"predictor": list(self.predictor.parameters())}
