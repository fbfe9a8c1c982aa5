"""SimSiam: the student predicts its own projection of another view, and a stop-gradient is all it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from selfdistill.divergences import Cosine, Divergence
from selfdistill.heads import MLP
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Schedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views


@dataclass
class SimSiamOutputs(Outputs):
    """Predictions, and the projections ``[V, B, P]`` that they were made from."""

    own: Tensor = field(kw_only=True)


class SimSiam(SelfDistillModule[SimSiamOutputs, Outputs | None]):
    """Simple siamese learning (arXiv 2011.10566).

    ``L = ½ D(p_1, z_2) + ½ D(p_2, z_1)`` (equation 3): p the predictor's outputs, z the projections, behind a
    stop-gradient. D is 1 − cos, which is the paper's (equation 1) plus 1: 0, not −1, where all agree. With a teacher,
    z is the teacher's, as in :class:`BYOL`. Defaults are the published 100 epochs.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the projector's two hidden layers.
        out_dim: P, width of projections and predictions.
        predictor_dim: width of the predictor's hidden layer, which is to be a bottleneck.
        divergence: D between prediction and target ``[N, P]``; 1 − cos by default.
        teacher: the teacher's policy; none by default.
        optimizer: the recipe.
        weights: of the terms (``distill``).
        objectives: further losses.
    """

    evaluates = "student"

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        hidden_dim: int = 2048,
        out_dim: int = 2048,
        predictor_dim: int = 512,
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        projector = MLP(
            backbone.dim, hidden_dim, out_dim, layers=3, bias=False, output_bias=False, output_norm="batch_affine_free"
        )
        super().__init__(
            Tower(backbone, projector),
            teacher=teacher or TeacherPolicy.none(),
            optimizer=optimizer
            or OptimizerRecipe(
                "sgd", 0.05, weight_decay=1e-4, scaling="linear", decay_exclude=(), constant_lr=("predictor",)
            ),
            weights=weights,
            objectives=objectives,
            divergence=divergence or Cosine(),
        )
        self.predictor = MLP(out_dim, predictor_dim, out_dim, bias=False)

    def targets(self, views: Views) -> Outputs | None:
        if self.teacher is None:
            return None
        features, projections = self.teacher(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> SimSiamOutputs:
        features, projections = self.student(views.student)
        pairs = views.pairs
        if self.teacher is None:
            # targets are this side's own: teacher slots become student slots
            own = {teacher: student for student, teacher in views.same}
            pairs = tuple((s, own[t]) for s, t in pairs if t in own)
        return SimSiamOutputs(self.predictor(projections), features.pooled, pairs, own=projections)

    def terms(self, predictions: SimSiamOutputs, targets: Outputs | None) -> dict[str, Tensor]:
        targets = targets or Outputs(predictions.own, predictions.features)
        return {"distill": self.compare(self.divergence, predictions, targets)}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"predictor": list(self.predictor.parameters())}
