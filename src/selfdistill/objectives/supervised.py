"""What labels there are, are learned: semi-supervised training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.objectives.base import Coupling, Need, Objective, mean_where

if TYPE_CHECKING:
    from selfdistill.methods import Outputs, SelfDistillModule
    from selfdistill.views import Views


class Supervised(Objective):
    """``L = mean over the student's crops of labelled images of −log softmax(W·x + b)_y``, 0 without such images.

    With EMATeacher this is Mean Teacher (arXiv 1703.01780). x are the student's features; the linear classifier is
    trained here and not evaluated. Images with a label below 0 have none. The mean is over all ranks. Micro-batches
    with different numbers of labelled images weigh the same.

    Args:
        classes: number of classes; labels are 0 to ``classes`` − 1.
    """

    name: ClassVar[str] = "supervised"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    couples: ClassVar[Coupling | None] = "numbers of labelled images"
    over_ranks: ClassVar[bool] = True

    def __init__(self, classes: int | None) -> None:
        super().__init__()
        if classes is None or classes < 2:
            raise ValueError(
                f"objective.supervised.classes: {classes} given, allowed is 2 or more: the classes of the data"
            )
        self.classes = classes

    def attach(self, module: SelfDistillModule[Any, Any]) -> None:
        super().attach(module)
        self.classifier = nn.Linear(module.student.backbone.dim, self.classes)

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Outputs, targets: Any
    ) -> dict[str, Tensor]:
        if views.labels is None:
            raise ValueError("objective.supervised: views without labels given; choose data with labels, or another")
        logits = self.classifier(predictions.features.to(self.classifier.weight.dtype))
        labels = views.labels.expand(len(logits), -1).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.clamp_min(0), reduction="none")
        return {"supervised": mean_where(loss, labels >= 0)}
