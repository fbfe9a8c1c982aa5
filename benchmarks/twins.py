"""Methods with the part taken out that keeps them from collapsing, for `collapse_atlas.py`.

Named by ``method._target_=benchmarks.twins.<name>``.
"""

from __future__ import annotations

from torch import Tensor

from selfdistill.methods import BYOL, Outputs, SimSiam
from selfdistill.methods.simsiam import SimSiamOutputs
from selfdistill.views import Views


class BYOLWithoutPredictor(BYOL):
    """The student's projections themselves are held against the teacher's."""

    def predictions(self, views: Views) -> Outputs:
        features, projections = self.student(views.student)
        # the predictor is kept, without a share in the loss: all twins have the same parameters
        return Outputs(projections + 0 * self.predictor(projections), features.pooled, views.pairs)


class SimSiamWithoutPredictor(SimSiam):
    """Projections of one view are held against those of the other, behind the stop-gradient."""

    def predictions(self, views: Views) -> SimSiamOutputs:
        outputs = super().predictions(views)
        outputs.projections = outputs.own + 0 * outputs.projections
        return outputs


class SimSiamWithoutStopGradient(SimSiam):
    """Both sides are trained to agree."""

    def terms(self, predictions: SimSiamOutputs, targets: Outputs | None) -> dict[str, Tensor]:
        student, teacher = self.paired(predictions, Outputs(predictions.own, predictions.features))
        return {"distill": self.divergence(student.flatten(0, 1), teacher.flatten(0, 1), self.clock).mean()}
