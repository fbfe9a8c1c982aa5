"""SwAV: every crop predicts the cluster that the other one is assigned to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfdistill.distributed import rank, world_size
from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.modules import as_temperature
from selfdistill.heads import MLP, SwAVPrototypes
from selfdistill.methods.base import Answers, Outputs, SelfDistillModule
from selfdistill.methods.outputs import as_logits
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.objectives import Coupling
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Duration, Schedule, check_duration, duration_in_steps
from selfdistill.targets import Queue, sinkhorn
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

# a row of the queue holds the embeddings of both large crops of an image
_QUEUED = 2
_LARS = OptimizerRecipe(
    "lars", 4.8, weight_decay=1e-6, warmup="10 epochs", lr_start=0.3, lr_end=4.8e-3, decay_exclude=(),
    freeze={"prototypes": 313},
)  # fmt: skip


@dataclass
class SwAVOutputs(Outputs):
    """``projections`` are the embeddings z; ``assigned`` the student's slots of the crops that get codes."""

    assigned: tuple[int, ...] = ()


class SwAV(SelfDistillModule[SwAVOutputs, Outputs | None]):
    """Swapping assignments between views (arXiv 2006.09882).

    ``L = mean over i of 1/(V−1) Σ_{v≠i} −Σ_k q_ik log softmax(s_v/T)_k`` (equation 1 with §3.3's multi-crop): scores
    s = ẑ·C with unit prototypes C, and codes q_i = Sinkhorn(s_i/ε) of the large crops i, behind a stop-gradient.
    The student teaches itself; with a teacher the codes come from the teacher's embeddings. The optimizer of
    the paper, LARC without clipping, is LARS but for where weight decay enters the trust ratio.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the projector's hidden layer.
        out_dim: P, width of the embeddings.
        prototypes: K, number of clusters.
        temperature: T.
        epsilon: ε; the smaller, the harder the codes.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        queue_length: past images, over all processes, that are assigned along with the batch; 0 for none. The
            paper takes 3840 where the batch is 256.
        queue_start: when it begins to fill; it is used once it is full.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``cluster``).
        objectives: further losses.
    """

    evaluates = "student"

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        prototypes: int = 3000,
        temperature: Schedule | float = 0.1,
        epsilon: Schedule | float = 0.05,
        sinkhorn_iterations: int = 3,
        queue_length: int = 0,
        queue_start: Duration = "15 epochs",
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if queue_length < 0:
            raise ValueError(f"method.queue_length: {queue_length} given, allowed is 0 (no queue) or more")
        check_duration("method.queue_start", queue_start)
        backbone = as_backbone(backbone)
        super().__init__(
            Tower(backbone, MLP(backbone.dim, hidden_dim, out_dim)),
            teacher=teacher or TeacherPolicy.none(),
            optimizer=optimizer or _LARS,
            weights=weights,
            objectives=objectives,
        )
        self.prototypes = SwAVPrototypes(out_dim, prototypes)
        self.temperature = as_temperature("method.temperature", temperature)
        self.epsilon = as_temperature("method.epsilon", epsilon)
        self.sinkhorn_iterations = sinkhorn_iterations
        self.queue = Queue(queue_length, _QUEUED * out_dim) if queue_length else None
        self.queue_start = queue_start

    def targets(self, views: Views) -> Outputs | None:
        if self.teacher is None:
            return None
        features, embeddings = self.teacher(views.teacher)
        return Outputs(embeddings, features.pooled)

    def predictions(self, views: Views) -> SwAVOutputs:
        crops, assigned = len(views.teacher), tuple(student for student, _ in views.same)
        if self.teacher is None and len(assigned) != crops:
            raise ValueError("views: one for the teacher alone given, which SwAV has not; give it both roles")
        if self.queue is not None and crops != _QUEUED:
            raise ValueError(f"method.queue_length: not 0 beside {crops} teacher views, allowed are {_QUEUED} views")
        features, embeddings = self.student(views.student)
        return SwAVOutputs(embeddings, features.pooled, views.pairs, assigned)

    def terms(self, predictions: SwAVOutputs, targets: Outputs | None) -> dict[str, Tensor]:
        scores = self.prototypes(predictions.projections.to(self.prototypes.weight.dtype))
        codes = torch.stack([self._codes(z, crop) for crop, z in enumerate(_assigned(predictions, targets))])
        temperature = self.temperature(self.clock)
        loss = fused_cross_entropy(
            scores, codes, student_temperature=temperature, teacher_temperature=None, pairs=predictions.pairs
        )
        return {"cluster": loss}

    def observe(self, predictions: SwAVOutputs, targets: Outputs | None) -> None:
        if self.queue is not None and self.clock.step >= duration_in_steps(self.queue_start, self.clock):
            self.queue.observe(torch.cat(_assigned(predictions, targets), dim=-1))

    def answers(self, predictions: SwAVOutputs, targets: Outputs | None) -> Answers:
        scores = self.prototypes(predictions.projections.to(self.prototypes.weight.dtype))
        codes = torch.stack([self._codes(z, crop) for crop, z in enumerate(_assigned(predictions, targets))])
        return Answers(scores.float() / self.temperature(self.clock), as_logits(codes), predictions.pairs)

    def couples(self) -> dict[str, Coupling]:
        return {"cluster": "Sinkhorn"}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"prototypes": list(self.prototypes.parameters())}

    @torch.no_grad()
    def _codes(self, embeddings: Tensor, crop: int) -> Tensor:
        """Codes ``[B, K]`` of one crop's embeddings ``[B, P]``, balanced together with the queue's."""
        rows = embeddings.to(self.prototypes.weight.dtype)
        if self.queue is not None and self.queue.is_full:
            # every rank holds the whole queue, and Sinkhorn adds over ranks: each brings its share
            past = self.queue()[rank() :: world_size()].unflatten(1, (_QUEUED, -1))[:, crop]
            rows = torch.cat([past, rows])
        codes = sinkhorn(self.prototypes(rows), epsilon=self.epsilon(self.clock), iterations=self.sinkhorn_iterations)
        return codes[-len(embeddings) :]


def _assigned(predictions: SwAVOutputs, targets: Outputs | None) -> list[Tensor]:
    """Embeddings ``[B, P]`` of each crop that gets codes."""
    if targets is not None:
        return list(targets.projections)
    return [predictions.projections[slot] for slot in predictions.assigned]
