"""What a student pays for differing from its teacher."""

from selfdistill.divergences.fused import fused_cross_entropy
from selfdistill.divergences.modules import (
    JS,
    KL,
    L2,
    Cosine,
    CrossEntropy,
    Divergence,
    FunctionDivergence,
    NormalizedL2,
    SmoothL1,
    as_divergence,
)

__all__ = [
    "JS",
    "KL",
    "L2",
    "Cosine",
    "CrossEntropy",
    "Divergence",
    "FunctionDivergence",
    "NormalizedL2",
    "SmoothL1",
    "as_divergence",
    "fused_cross_entropy",
]
