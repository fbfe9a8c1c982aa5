"""The Trainer of the tests that need one and nothing around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L


def bare_trainer(folder: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """On the CPU, without logger, checkpoints and pictures of progress, unless ``settings`` of a Trainer say so."""
    bare = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **(bare | settings))
