"""Views of a sample: the batch type, the recipes, and the two engines that carry them out."""

from selfdistill.views.augment import ViewBatches
from selfdistill.views.augment_batched import batched_views
from selfdistill.views.loader import ViewLoader
from selfdistill.views.recipes import named_recipe
from selfdistill.views.specs import Augment, CropSpec, ViewRecipe
from selfdistill.views.views import RawBatch, Views

__all__ = [
    "Augment",
    "CropSpec",
    "RawBatch",
    "ViewBatches",
    "ViewLoader",
    "ViewRecipe",
    "Views",
    "batched_views",
    "named_recipe",
]
