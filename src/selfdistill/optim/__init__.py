"""Optimizers: the recipe that builds one and sets its rates, and LARS."""

from selfdistill.optim.groups import scale_learning_rate
from selfdistill.optim.lars import Lars
from selfdistill.optim.recipe import OptimizerRecipe

__all__ = ["Lars", "OptimizerRecipe", "scale_learning_rate"]
