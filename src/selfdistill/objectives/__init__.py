"""Losses that any method can take in addition (``objective=``), each with a weight of its own.

All are means, over crops or pairs of crops and over images, so that a weight means the same for any number of views.
"""

from selfdistill.objectives.base import Coupling, Objective
from selfdistill.objectives.clustering import Clustering
from selfdistill.objectives.contrastive import Contrastive
from selfdistill.objectives.koleo import KoLeo
from selfdistill.objectives.masked_pixels import MaskedPixels
from selfdistill.objectives.masked_tokens import MaskedTokens
from selfdistill.objectives.me_max import MeMax
from selfdistill.objectives.supervised import Supervised
from selfdistill.objectives.variance_covariance import VarianceCovariance

__all__ = [
    "Clustering",
    "Contrastive",
    "Coupling",
    "KoLeo",
    "MaskedPixels",
    "MaskedTokens",
    "MeMax",
    "Objective",
    "Supervised",
    "VarianceCovariance",
]
