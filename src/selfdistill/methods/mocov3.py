"""MoCo v3: the student finds the key of its moving average among those of the same batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from selfdistill.divergences.contrastive import info_nce_in_batch
from selfdistill.divergences.modules import as_temperature
from selfdistill.heads import MLP
from selfdistill.heads.mlp import Norm
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.objectives import Coupling
from selfdistill.optim import OptimizerRecipe
from selfdistill.products import unit
from selfdistill.schedules import Schedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views


@dataclass
class MoCoV3Outputs(Outputs):
    """Queries, and the projections ``[V, B, P]`` that are the keys where there is no teacher."""

    own: Tensor = field(kw_only=True)


class MoCoV3(SelfDistillModule[MoCoV3Outputs, Outputs | None]):
    """Momentum contrast without a queue (arXiv 2104.02057).

    ``L = ctr(q_1, k_2) + ctr(q_2, k_1)``, ``ctr(q, k) = −2T log(exp(q·k⁺/T) / Σ_j exp(q·k_j/T))``: q the student's
    predictions, k_j the teacher's projections of the other view of all images in the batch, on all ranks; all unit
    vectors. The teacher sees batch statistics. Defaults are the published 100 epochs of a ResNet-50; for a ViT take
    ``projector_layers=3``, ``predictor_norm="batch_affine_free"`` and T = .2, and keep its random patch projection,
    ``freeze={"patch_embed": 1.0}`` of the recipe.

    Without a teacher the keys are the student's own projections, and both sides are trained: SimCLR (arXiv 2002.05709)
    but for its negatives from the same view. With ``predictor=True`` they stand behind a stop-gradient.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the hidden layers of projector and predictor.
        out_dim: P, width of the projections.
        projector_layers: linear layers of the projector.
        predictor: whether the student has one (of two layers); None is where there is a teacher.
        predictor_norm: norm after the predictor's last layer.
        temperature: T.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``contrast``).
        objectives: further losses.
    """

    evaluates = "student"

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        projector_layers: int = 2,
        predictor: bool | None = None,
        predictor_norm: Norm | None = None,
        temperature: Schedule | float = 1.0,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        teacher = teacher or TeacherPolicy.ema(0.99, 1.0, mode="train")
        predictor = teacher.source != "none" if predictor is None else predictor
        mlp = partial(MLP, hidden_dim=hidden_dim, out_dim=out_dim, bias=False, output_bias=False)
        super().__init__(
            Tower(backbone, mlp(backbone.dim, layers=projector_layers, output_norm="batch_affine_free")),
            teacher=teacher,
            optimizer=optimizer
            or OptimizerRecipe("lars", 0.6, weight_decay=1e-6, scaling="linear", warmup="10 epochs"),
            weights=weights,
            objectives=objectives,
        )
        self.predictor = mlp(out_dim, output_norm=predictor_norm) if predictor else None
        self.temperature = as_temperature("method.temperature", temperature)

    def targets(self, views: Views) -> Outputs | None:
        if self.teacher is None:
            return None
        features, projections = self.teacher(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> MoCoV3Outputs:
        features, projections = self.student(views.student)
        pairs = views.pairs
        if self.teacher is None:
            # keys are this side's own: teacher slots become student slots
            own = {teacher: student for student, teacher in views.same}
            pairs = tuple((s, own[t]) for s, t in pairs if t in own)
        if self.predictor is None:
            return MoCoV3Outputs(projections, features.pooled, pairs, own=projections)
        return MoCoV3Outputs(self.predictor(projections), features.pooled, pairs, own=projections.detach())

    def terms(self, predictions: MoCoV3Outputs, targets: Outputs | None) -> dict[str, Tensor]:
        targets = targets or Outputs(predictions.own, predictions.features)
        queries, keys = self.paired(predictions, targets)
        temperature = self.temperature(self.clock)
        contrast = info_nce_in_batch(unit(queries), unit(keys), temperature=temperature)
        # 2T of each direction, and the paper adds the two
        return {"contrast": 4 * temperature * contrast.mean()}

    def couples(self) -> dict[str, Coupling]:
        return {"contrast": "in-batch negatives"}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        stem = [p for name, p in self.student.backbone.named_parameters() if "patch_embed" in name]
        predictor = [] if self.predictor is None else list(self.predictor.parameters())
        return {"predictor": predictor, "patch_embed": stem}
