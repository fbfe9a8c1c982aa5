"""Heads: what stands between a backbone's features and a loss."""

from selfdistill.heads.class_patch import ClassPatchHead
from selfdistill.heads.latent_predictor import LatentPredictor, sincos_2d
from selfdistill.heads.mlp import MLP
from selfdistill.heads.no_head import NoHead
from selfdistill.heads.prototypes import DINOHead, MultiHead, Prototypes, SwAVPrototypes

__all__ = [
    "MLP",
    "ClassPatchHead",
    "DINOHead",
    "LatentPredictor",
    "MultiHead",
    "NoHead",
    "Prototypes",
    "SwAVPrototypes",
    "sincos_2d",
]
