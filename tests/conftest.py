"""What every test shares: one thread, no network, configurations as a command would compose them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)

Compose = Callable[..., DictConfig]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write tests/golden anew")


@pytest.fixture(autouse=True)
def no_command() -> None:
    """Hydra keeps the last command of a process, which the next test would take for its own."""
    HydraConfig.instance().cfg = None


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    """``compose("method=byol_like", …)``: the configuration of that command, its run in ``tmp_path``."""
    from selfdistill.config import check

    def composed(*overrides: str) -> DictConfig:
        config = check("train", list(overrides)).config
        config.run_dir = str(tmp_path / "run")
        config.trainer.accelerator = "cpu"
        config.trainer.enable_progress_bar = False
        return config

    return composed
