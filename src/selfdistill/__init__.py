"""Self-distillation for self-supervised learning: methods on PyTorch Lightning, composed with Hydra.

Names are loaded when first used, so that ``import selfdistill`` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.methods.base import SelfDistillModule
    from selfdistill.methods.byol import BYOL
    from selfdistill.methods.ema_teacher import EMATeacher
    from selfdistill.views import Views

__version__ = "0.1.0"

__all__ = ["BYOL", "EMATeacher", "SelfDistillModule", "Views"]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    home = importlib.import_module("selfdistill.views" if name == "Views" else "selfdistill.methods")
    if not hasattr(home, name):
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
