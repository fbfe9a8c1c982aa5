"""Heads: what stands between a backbone's features and a loss."""

from selfdistill.heads.latent_predictor import LatentPredictor, sincos_2d
from selfdistill.heads.mlp import MLP
from selfdistill.heads.prototypes import DINOHead, MultiHead, Prototypes, SwAVPrototypes

__all__ = ["MLP", "DINOHead", "LatentPredictor", "MultiHead", "Prototypes", "SwAVPrototypes", "sincos_2d"]
