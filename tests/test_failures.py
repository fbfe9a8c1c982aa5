"""What others say of a mistake becomes a line of ours; what is no mistake keeps its traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import UsageError

from selfdistill.config import UserError
from selfdistill.failures import clear_errors


def test_an_argument_that_wandb_does_not_have(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True, nonsense=1)
    said = r"^logger\.wandb\.nonsense: no argument of wandb\.init; leave it out$"
    with pytest.raises(UserError, match=said), clear_errors():
        assert logger.experiment
    assert list(tmp_path.rglob("*.wandb")) == []


def test_a_run_that_wandb_does_not_take() -> None:
    said = r"^logger\.offline: false given, but wandb does not take the run \(No API key configured\); log in"
    with pytest.raises(UserError, match=said), clear_errors():
        raise UsageError("No API key configured.")


@pytest.mark.parametrize("said", ["init() got an unexpected keyword argument", "unsupported operand type(s)"])
def test_other_type_errors_pass(said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)), clear_errors():
        raise TypeError(said)
