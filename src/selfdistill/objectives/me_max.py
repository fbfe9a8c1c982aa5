"""All dimensions of the projections, taken for clusters, are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from selfdistill.divergences.modules import as_temperature
from selfdistill.objectives.base import Coupling, Need, Objective
from selfdistill.regularizers import me_max
from selfdistill.schedules import Schedule

if TYPE_CHECKING:
    from selfdistill.methods import Outputs, SelfDistillModule
    from selfdistill.views import Views


class MeMax(Objective):
    """``L = log K − H(p̄)``, ``p̄ = mean softmax(z/T)`` over the student's crops and the images of all ranks.

    MSN's mean-entropy maximisation (arXiv 2204.07141, equation 1) on the student's outputs as logits: those of the
    prototypes in DINO-like methods, elsewhere the projections.

    Args:
        temperature: T.
    """

    name: ClassVar[str] = "me_max"
    needs: ClassVar[frozenset[Need]] = frozenset({"projections"})
    couples: ClassVar[Coupling | None] = "mean entropy"
    over_ranks: ClassVar[bool] = True

    def __init__(self, temperature: Schedule | float = 0.1) -> None:
        super().__init__()
        self.temperature = as_temperature("objective.me_max.temperature", temperature)

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Outputs, targets: Any
    ) -> dict[str, Tensor]:
        logits = self.projections(predictions, len(views.student), views.batch_size)
        return {"me_max": me_max(logits.flatten(0, 1), self.temperature(module.clock))}
