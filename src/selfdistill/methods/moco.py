"""MoCo: the student finds the key of its moving average among those of images seen before."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences.contrastive import info_nce_queue
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


class MoCo(SelfDistillModule[Outputs, Outputs]):
    """Momentum contrast, version 2 (arXiv 2003.04297; the loss is equation 1 of arXiv 1911.05722).

    ``L = −log(exp(q·k/T) / (exp(q·k/T) + Σ_i exp(q·n_i/T)))``: q the student's projection of one view, k the
    teacher's of another, n_i the queue of the teacher's projections of earlier steps, all unit vectors. A key
    enters the queue after its own step: it is never a negative of its query. Defaults are the published 200 epochs.

    The teacher sees batch statistics, and MoCo shuffles its batch over the devices so that these do not give the
    pair away; here synchronised batch norm does that: ``trainer.sync_batchnorm=true`` with several devices.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the projector's hidden layer.
        out_dim: P, width of the projections.
        queue_length: number of negatives.
        temperature: T.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``contrast``).
        objectives: further losses.
    """

    evaluates = "student"
    # a queue of keys of a network that moves fast is no dictionary: it fails without momentum (arXiv 1911.05722, §4.1)
    accepts = Accepts(teachers=("student",))

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        queue_length: int = 65536,
        temperature: Schedule | float = 0.2,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        super().__init__(
            Tower(backbone, MLP(backbone.dim, hidden_dim, out_dim, norm=None)),
            teacher=teacher or TeacherPolicy.ema(0.999, shape="constant", mode="train"),
            optimizer=optimizer or OptimizerRecipe("sgd", 0.03, weight_decay=1e-4, scaling="linear", decay_exclude=()),
            weights=weights,
            objectives=objectives,
        )
        self.temperature = as_temperature("method.temperature", temperature)
        self.queue = Queue(queue_length, out_dim)

    def targets(self, views: Views) -> Outputs:
        features, projections = self.teaching_tower(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        features, projections = self.student(views.student)
        return Outputs(projections, features.pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        student, teacher = self.paired(predictions, targets)
        temperature = self.temperature(self.clock)
        contrast = info_nce_queue(unit(student), unit(teacher), self.queue(), temperature=temperature)
        return {"contrast": contrast.mean()}

    def observe(self, predictions: Outputs, targets: Outputs) -> None:
        self.queue.observe(unit(targets.projections).flatten(0, 1))
