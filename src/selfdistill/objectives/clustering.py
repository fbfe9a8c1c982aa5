"""The student predicts the cluster that the teacher's view of the image is assigned to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.modules import as_temperature
from selfdistill.heads import Prototypes
from selfdistill.objectives.base import Coupling, Need, Objective
from selfdistill.schedules import Schedule
from selfdistill.targets import sinkhorn

if TYPE_CHECKING:
    from selfdistill.methods import Outputs, SelfDistillModule
    from selfdistill.views import Views


class Clustering(Objective):
    """``L = mean over pairs (v, g), v ≠ g, of −Σ_k q_gk log softmax(s_v/T)_k``, ``q_g = Sinkhorn(s'_g/ε)``.

    SwAV's swapped prediction (arXiv 2006.09882, equation 1) with a teacher: s = cos(z, C) of the student's
    projections with prototypes C that are learned here, s' the same of the teacher's, the codes q behind a
    stop-gradient. Each crop's codes balance by themselves, over the images of all ranks.

    Args:
        prototypes: K, number of clusters.
        temperature: T.
        epsilon: ε; the smaller, the harder the codes.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        dim: P, width of the projections; None asks the student's head for its ``out_dim``.
    """

    name: ClassVar[str] = "clustering"
    needs: ClassVar[frozenset[Need]] = frozenset({"projections", "teacher"})
    couples: ClassVar[Coupling | None] = "Sinkhorn"

    def __init__(
        self,
        prototypes: int = 3000,
        temperature: Schedule | float = 0.1,
        epsilon: Schedule | float = 0.05,
        sinkhorn_iterations: int = 3,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        if prototypes < 2:
            raise ValueError(f"objective.clustering.prototypes: {prototypes} given, allowed is 2 or more")
        if sinkhorn_iterations < 1:
            raise ValueError(
                f"objective.clustering.sinkhorn_iterations: {sinkhorn_iterations} given, allowed is 1 or more"
            )
        self.count = prototypes
        self.temperature = as_temperature("objective.clustering.temperature", temperature)
        self.epsilon = as_temperature("objective.clustering.epsilon", epsilon)
        self.sinkhorn_iterations = sinkhorn_iterations
        self.dim = dim

    def attach(self, module: SelfDistillModule[Any, Any]) -> None:
        super().attach(module)
        head = module.student.head
        dim = self.dim or getattr(head, "out_dim", None) or getattr(head, "out_features", None)
        if not isinstance(dim, int):
            raise ValueError(
                f"objective.clustering.dim: not given, and {type(head).__name__} has no out_dim to read; "
                "set it to the width of the method's projections"
            )
        self.prototypes = Prototypes(dim, self.count)

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Outputs, targets: Outputs | None
    ) -> dict[str, Tensor]:
        pairs, images, dtype = self.cross_pairs(views), views.batch_size, self.prototypes.weight.dtype
        student = self.projections(predictions, len(views.student), images).to(dtype)
        teacher = self.projections(targets, len(views.teacher), images).to(dtype)
        loss = fused_cross_entropy(
            self.prototypes(student),
            self._codes(teacher, self.epsilon(module.clock)),
            student_temperature=self.temperature(module.clock),
            teacher_temperature=None,
            pairs=pairs,
        )
        return {"clustering": loss}

    @torch.no_grad()
    def _codes(self, projections: Tensor, epsilon: float) -> Tensor:
        scores = self.prototypes(projections)
        return torch.stack([sinkhorn(crop, epsilon=epsilon, iterations=self.sinkhorn_iterations) for crop in scores])
