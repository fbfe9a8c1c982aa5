"""Sweeps: ``python -m src.train -m method=byol_like,dino_like seed=0,1,2``, each job its own process and folder."""

from __future__ import annotations

from selfdistill.sweeps.job import run_job
from selfdistill.sweeps.run import sweep

__all__ = ["run_job", "sweep"]
