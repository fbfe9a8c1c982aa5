"""MSN: from parts of an image the student tells the cluster that the teacher finds for all of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.modules import as_temperature
from selfdistill.heads import MLP, Prototypes
from selfdistill.methods.base import Answers, Outputs, SelfDistillModule
from selfdistill.methods.outputs import as_logits
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.objectives import Coupling
from selfdistill.optim import OptimizerRecipe
from selfdistill.regularizers import me_max
from selfdistill.schedules import Schedule
from selfdistill.targets import sinkhorn
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

_ADAMW = OptimizerRecipe(
    "adamw", 1e-3, weight_decay=0.04, weight_decay_end=0.4, warmup="15 epochs", lr_start=2e-4, lr_end=1e-6,
    decay_exclude=("bias", "norm", "role:prototypes"), clip=3.0,
)  # fmt: skip


class MSN(SelfDistillModule[Outputs, Outputs]):
    """Masked Siamese networks (arXiv 2204.07141).

    ``L = mean over anchors of −Σ_k q_k log p_k + (log K − H(p̄))`` (equation 1): p = softmax(cos(z, C)/τ) of an
    anchor, p̄ their mean, q = Sinkhorn(p_t^(1/T)/Σ) of the target view's p_t, without gradient. Anchors are random
    views with patches dropped (``views.masks["keep"]``) and focal ones; prototypes C are learned, and shared by
    both sides. As in the authors' code the head sees one resolution at a time. There weight decay and learning rate
    follow cosines 1.25 times as long as the run, here as long; and gradients of C are not clipped, here with the rest.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``; a vision transformer.
        hidden_dim: width of the head's hidden layers.
        out_dim: P, width of the embeddings.
        prototypes: K, number of clusters.
        temperature: τ.
        sharpen: T.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``cluster``, ``me_max``).
        objectives: further losses.

    Raises:
        ValueError: a backbone without patch tokens.
    """

    evaluates = "teacher"
    accepts = Accepts(tokens=True, masks=("keep",), has=("me_max",))
    over_ranks = frozenset({"me_max"})

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "vit_small_patch16_224",
        *,
        hidden_dim: int = 2048,
        out_dim: int = 256,
        prototypes: int = 1024,
        temperature: Schedule | float = 0.1,
        sharpen: Schedule | float = 0.25,
        sinkhorn_iterations: int = 3,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        head = MLP(backbone.dim, hidden_dim, out_dim, layers=3, activation="gelu", init_std=0.02)
        super().__init__(
            Tower(backbone, head),
            # .996 to 1 over 1.25 times the run
            teacher=teacher or TeacherPolicy.ema(0.996, 0.9992, shape="linear", mode="train"),
            optimizer=optimizer or _ADAMW,
            weights=weights,
            objectives=objectives,
        )
        self.prototypes = Prototypes(out_dim, prototypes)
        self.temperature = as_temperature("method.temperature", temperature)
        self.sharpen = as_temperature("method.sharpen", sharpen)
        self.sinkhorn_iterations = sinkhorn_iterations

    def targets(self, views: Views) -> Outputs:
        features, embeddings = self.teaching_tower(views.teacher)
        return Outputs(embeddings, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        crops = views.student
        focal = [crop.shape != crops[0].shape for crop in crops]
        if focal != sorted(focal):
            raise ValueError("views: a random view after a focal one given; put those of the first one's size first")
        count = focal.count(False)
        features, z = self.student(crops[:count], keep=views.mask("keep"))
        if not any(focal):
            return Outputs(z, features.pooled, views.pairs)
        focal_features, focal_z = self.student(crops[count:])
        pooled = torch.cat([features.pooled, focal_features.pooled])
        return Outputs(torch.cat([z, focal_z]), pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        dtype, temperature = self.prototypes.weight.dtype, self.temperature(self.clock)
        cosines = self.prototypes(predictions.projections.to(dtype))
        codes = self._codes(targets.projections)
        cluster = fused_cross_entropy(
            cosines, codes, student_temperature=temperature, teacher_temperature=None, pairs=predictions.pairs
        )
        return {"cluster": cluster, "me_max": me_max(cosines.flatten(0, 1), temperature)}

    def answers(self, predictions: Outputs, targets: Outputs) -> Answers:
        cosines = self.prototypes(predictions.projections.to(self.prototypes.weight.dtype))
        student = cosines.float() / self.temperature(self.clock)
        return Answers(student, as_logits(self._codes(targets.projections)), predictions.pairs)

    def couples(self) -> dict[str, Coupling]:
        return {"cluster": "Sinkhorn", "me_max": "mean entropy"}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"prototypes": list(self.prototypes.parameters())}

    @torch.no_grad()
    def _codes(self, embeddings: Tensor) -> Tensor:
        """Sharpened and balanced answers ``[G, B, K]`` to the target views' embeddings ``[G, B, P]``."""
        temperature = self.temperature(self.clock) * self.sharpen(self.clock)
        sharp = self.prototypes(embeddings.to(self.prototypes.weight.dtype)) / temperature
        # of probabilities, not of scores: the first scaling of Sinkhorn's is of prototypes, and tells them apart
        log_p = F.log_softmax(sharp, dim=-1).flatten(0, 1)
        return sinkhorn(log_p, epsilon=1.0, iterations=self.sinkhorn_iterations).view_as(sharp)
