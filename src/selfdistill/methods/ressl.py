"""ReSSL: student and teacher agree on how alike an image is to those seen before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences import CrossEntropy, Divergence
from selfdistill.divergences.modules import as_temperature
from selfdistill.heads import MLP
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.products import unit
from selfdistill.schedules import Schedule
from selfdistill.targets import Queue
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views


class ReSSL(SelfDistillModule[Outputs, Outputs]):
    """Relational self-supervised learning (arXiv 2107.09282).

    ``L = −Σ_i softmax(k·n/τ_t)_i log softmax(q·n/τ_s)_i``: q the student's projection of a strongly augmented view,
    k the teacher's of a weakly augmented one, n_i the queue of the teacher's projections of earlier steps, all unit
    vectors. The pair (q, k) itself is not compared. Defaults are the published 200 epochs.

    The teacher sees batch statistics; with several devices ``trainer.sync_batchnorm=true`` stands in for the
    authors' shuffling of the batch.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the projector's hidden layer.
        out_dim: P, width of the projections.
        queue_length: number of images that relations are to.
        student_temperature: τ_s.
        teacher_temperature: τ_t, below τ_s.
        divergence: between the two relations, as logits; cross-entropy by default. Its own temperatures
            multiply τ_s and τ_t.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``relation``).
        objectives: further losses.

    Raises:
        ValueError: a divergence made for features.
    """

    evaluates = "student"
    # a queue of keys of a network that moves fast is no measure: MoCo fails without momentum (arXiv 1911.05722, §4.1)
    accepts = Accepts(divergences=("logits",), teachers=("student",))

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        hidden_dim: int = 4096,
        out_dim: int = 512,
        queue_length: int = 131072,
        student_temperature: Schedule | float = 0.1,
        teacher_temperature: Schedule | float = 0.04,
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        super().__init__(
            Tower(backbone, MLP(backbone.dim, hidden_dim, out_dim, norm=None)),
            teacher=teacher or TeacherPolicy.ema(0.999, shape="constant", mode="train"),
            optimizer=optimizer or OptimizerRecipe("sgd", 0.05, weight_decay=1e-4, scaling="linear", warmup="5 epochs"),
            weights=weights,
            objectives=objectives,
            divergence=divergence or CrossEntropy(),
        )
        self.student_temperature = as_temperature("method.student_temperature", student_temperature)
        self.teacher_temperature = as_temperature("method.teacher_temperature", teacher_temperature)
        self.queue = Queue(queue_length, out_dim)

    def targets(self, views: Views) -> Outputs:
        features, projections = self.teaching_tower(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        features, projections = self.student(views.student)
        return Outputs(projections, features.pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        student, teacher = self.paired(predictions, targets)
        student_relation = F.linear(unit(student), self.queue()) / self.student_temperature(self.clock)
        teacher_relation = F.linear(unit(teacher), self.queue()) / self.teacher_temperature(self.clock)
        return {"relation": self.divergence(student_relation, teacher_relation, self.clock).mean()}

    def observe(self, predictions: Outputs, targets: Outputs) -> None:
        self.queue.observe(unit(targets.projections).flatten(0, 1))
