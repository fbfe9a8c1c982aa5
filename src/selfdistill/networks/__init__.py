"""Backbones behind one interface, and the tower (backbone + head) that a teacher mirrors."""

from selfdistill.networks.backbones import Backbone, Features, ModuleBackbone
from selfdistill.networks.published import load_published
from selfdistill.networks.small_cnn import SmallCNN
from selfdistill.networks.timm_backbones import as_backbone, build_backbone
from selfdistill.networks.tower import Tower

__all__ = [
    "Backbone",
    "Features",
    "ModuleBackbone",
    "SmallCNN",
    "Tower",
    "as_backbone",
    "build_backbone",
    "load_published",
]
