"""A backbone that others trained, as the protocols want it."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import torch
from torch import nn

from selfdistill.methods import SelfDistillModule
from selfdistill.networks import Backbone, Tower
from selfdistill.optim import OptimizerRecipe
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views


class Published(SelfDistillModule[None, None]):
    """A backbone without head, teacher or loss: it is evaluated and nothing else.

    Args:
        backbone: whose pooled output is evaluated (class token, or the mean of patches or of the map, as it does it).
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(
            Tower(backbone, nn.Identity()),
            teacher=TeacherPolicy.none(),
            optimizer=OptimizerRecipe(partial(torch.optim.SGD, lr=0.0)),
        )

    def targets(self, views: Views) -> NoReturn:
        raise TypeError("Published: it has no loss; give the backbone to a method to train it")

    predictions = targets

    def terms(self, predictions: None, targets: None) -> NoReturn:
        raise TypeError("Published: it has no loss; give the backbone to a method to train it")
