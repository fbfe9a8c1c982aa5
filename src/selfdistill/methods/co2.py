"""CO2: MoCo, whose student also agrees with the teacher on how alike other images are."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences.contrastive import info_nce
from selfdistill.divergences.functional import kl
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


class CO2(SelfDistillModule[Outputs, Outputs]):
    """Consistent contrast on MoCo v2 (arXiv 2010.02217).

    ``L = L_InfoNCE + α·½[KL(P‖Q) + KL(Q‖P)]``: P and Q are softmaxes over the negatives alone, of the similarities
    of the teacher's key and of the student's query to the queue, at a temperature of their own. Contrast, network
    and schedule are those of :class:`MoCo`. α and that temperature could not be checked against the paper: the
    defaults, α = .3 at .05, are a start.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the projector's hidden layer.
        out_dim: P, width of the projections.
        queue_length: number of negatives.
        temperature: T of the contrast.
        consistency_temperature: that of P and Q.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``contrast``, ``consistency``); α is the second one.
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
        consistency_temperature: Schedule | float = 0.05,
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
            weights={"consistency": 0.3, **(weights or {})},
            objectives=objectives,
        )
        self.temperature = as_temperature("method.temperature", temperature)
        self.consistency_temperature = as_temperature("method.consistency_temperature", consistency_temperature)
        self.queue = Queue(queue_length, out_dim)

    def targets(self, views: Views) -> Outputs:
        features, projections = self.teaching_tower(views.teacher)
        return Outputs(projections, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        features, projections = self.student(views.student)
        return Outputs(projections, features.pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        student, teacher = self.paired(predictions, targets)
        queries, keys = unit(student), unit(teacher)
        positive, negatives = (queries * keys).sum(-1), F.linear(queries, self.queue())
        contrast = info_nce(positive, negatives, temperature=self.temperature(self.clock))
        temperature = self.consistency_temperature(self.clock)
        query_relation, key_relation = negatives / temperature, F.linear(keys, self.queue()) / temperature
        both = [kl(query_relation, key_relation, direction=d) for d in ("student_teacher", "teacher_student")]
        return {"contrast": contrast.mean(), "consistency": (both[0] + both[1]).mean() / 2}

    def observe(self, predictions: Outputs, targets: Outputs) -> None:
        self.queue.observe(unit(targets.projections).flatten(0, 1))
