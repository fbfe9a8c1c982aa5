"""The student finds the teacher's projection of an image among those of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from selfdistill.divergences.contrastive import info_nce_in_batch
from selfdistill.divergences.modules import as_temperature
from selfdistill.objectives.base import Coupling, Need, Objective
from selfdistill.products import unit
from selfdistill.schedules import Schedule

if TYPE_CHECKING:
    from selfdistill.methods import Outputs, SelfDistillModule
    from selfdistill.views import Views


class Contrastive(Objective):
    """``L = mean over pairs (v, g), v ≠ g, of −log(e^(q_vi·k_gi/T) / Σ_j e^(q_vi·k_gj/T))``: InfoNCE in the batch.

    q are the student's projections (its predictions, where it predicts), k the teacher's of another crop of every
    image of the batch, on all ranks, behind a stop-gradient; all unit vectors. Each direction of MoCo v3
    (arXiv 2104.02057) is 2T times this.

    Args:
        temperature: T.
    """

    name: ClassVar[str] = "contrastive"
    needs: ClassVar[frozenset[Need]] = frozenset({"projections", "teacher"})
    couples: ClassVar[Coupling | None] = "in-batch negatives"

    def __init__(self, temperature: Schedule | float = 0.2) -> None:
        super().__init__()
        self.temperature = as_temperature("objective.contrastive.temperature", temperature)

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Outputs, targets: Outputs | None
    ) -> dict[str, Tensor]:
        pairs, images = self.cross_pairs(views), views.batch_size
        student = unit(self.projections(predictions, len(views.student), images))
        teacher = unit(self.projections(targets, len(views.teacher), images).detach())
        contrast = info_nce_in_batch(
            torch.stack([student[s] for s, _ in pairs]),
            torch.stack([teacher[t] for _, t in pairs]),
            temperature=self.temperature(module.clock),
        )
        return {"contrastive": contrast.mean()}
