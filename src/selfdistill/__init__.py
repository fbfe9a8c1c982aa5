"""Self-distillation for self-supervised learning: methods on PyTorch Lightning, composed with Hydra.

Names are loaded when first used, so that ``import selfdistill`` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.methods import BYOL, EMATeacher, SelfDistillModule
    from selfdistill.views import Views

__version__ = "0.1.0"

_HOME = {"Views": "selfdistill.views"}

__all__ = ["BYOL", "EMATeacher", "SelfDistillModule", "Views"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "selfdistill.methods")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
