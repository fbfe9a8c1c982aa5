"""One ``seed`` rules initial weights, order, views, masks and queue; ``deterministic=true`` holds in a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from selfdistill.assembly import build_data, build_method, build_trainer
from selfdistill.config import check


def made(method: str, seed: int) -> dict[str, Tensor]:
    """What a run of that seed begins with, whatever was drawn before it."""
    torch.rand(seed + 3)
    config = check("train", [f"method={method}", f"seed={seed}", "data.batch_size=32"]).config
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: Any = build_data(config)
    module: Any = build_method(config)
    batch = next(iter(data.train_dataloader()))
    views = data.on_after_batch_transfer(batch, 0)
    found = {"weights": torch.cat([p.detach().flatten() for p in module.student.parameters()]), "order": batch.index}
    found |= {"views": views.crops[0], **{f"masks.{name}": mask for name, mask in views.masks.items()}}
    if hasattr(module, "queue"):
        found["queue"] = module.queue()
    return found


@pytest.mark.parametrize(("method", "also"), [("moco_like", "queue"), ("ibot_like", "masks.mask")])
def test_a_seed_rules_all_that_a_run_begins_with(method: str, also: str) -> None:
    first, again, other = made(method, 0), made(method, 0), made(method, 1)
    assert {"weights", "order", "views", also} <= set(first)
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)
    for name in ("weights", "order", "views", also):
        assert not torch.equal(other[name], first[name]), name


def test_deterministic_holds_in_a_step(tmp_path: Path) -> None:
    config = check("train", ["method=ibot_like", "debug=fast", "deterministic=true", "trainer.max_steps=1"]).config
    config.run_dir = str(tmp_path)
    seen: list[bool] = []

    class Look(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(torch.are_deterministic_algorithms_enabled())

    try:
        trainer = build_trainer(config, [Look()])
        trainer.fit(build_method(config), build_data(config))
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [True]
