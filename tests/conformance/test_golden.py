"""The first five losses of every method stay what they were.

A change of numerics must be meant: ``pytest tests/conformance/test_golden.py --write-golden`` writes the
files anew, and the commit says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from packaging.version import Version
from trainers import bare_trainer

from selfdistill.assembly import build_data, build_method
from selfdistill.config import CONF

GOLDEN = Path(__file__).parents[1] / "golden"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.mark.parametrize("method", METHODS)
def test_the_first_losses_stay(method: str, compose: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = compose(f"method={method}", "data.batch_size=32")
    if config.backbone.name == "small_vit" and Version(torch.__version__) < Version("2.14"):
        pytest.skip("older versions of torch draw other initial weights for vision transformers")
    L.seed_everything(0, verbose=False)
    module, losses = build_method(config), Losses()
    trainer = bare_trainer(tmp_path, losses, max_steps=5, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, build_data(config))
    file = GOLDEN / f"{method}.json"
    if request.config.getoption("--write-golden"):
        file.write_text(json.dumps(losses.values, indent=1) + "\n", encoding="utf-8")
    assert losses.values == pytest.approx(json.loads(file.read_text(encoding="utf-8")), rel=1e-3)
