"""Self-distillation for self-supervised learning: methods on PyTorch Lightning, composed with Hydra.

Names are loaded when first used, so that ``import selfdistill`` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.methods.base import SelfDistillModule
    from selfdistill.methods.byol import BYOL
    from selfdistill.methods.co2 import CO2
    from selfdistill.methods.data2vec import Data2Vec
    from selfdistill.methods.dino import DINO
    from selfdistill.methods.dinov2 import DINOv2
    from selfdistill.methods.ema_teacher import EMATeacher
    from selfdistill.methods.ibot import IBOT
    from selfdistill.methods.ijepa import IJEPA
    from selfdistill.methods.moco import MoCo
    from selfdistill.methods.mocov3 import MoCoV3
    from selfdistill.methods.msn import MSN
    from selfdistill.methods.multi_head import MultiHead
    from selfdistill.methods.ressl import ReSSL
    from selfdistill.methods.simsiam import SimSiam
    from selfdistill.methods.swav import SwAV
    from selfdistill.views import Views

__version__ = "0.1.0"

__all__ = [
    "BYOL",
    "CO2",
    "DINO",
    "IBOT",
    "IJEPA",
    "MSN",
    "DINOv2",
    "Data2Vec",
    "EMATeacher",
    "MoCo",
    "MoCoV3",
    "MultiHead",
    "ReSSL",
    "SelfDistillModule",
    "SimSiam",
    "SwAV",
    "Views",
]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    home = importlib.import_module("selfdistill.views" if name == "Views" else "selfdistill.methods")
    if not hasattr(home, name):
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
