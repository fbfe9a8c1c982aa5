"""`ViewLoader`: the batch that nobody asked for, and the README's line with nothing else."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from selfdistill import BYOL
from selfdistill.views import ViewLoader


class Pictures:
    """So many random images, made when asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randint(256, (3, 12, 12), generator=torch.Generator().manual_seed(index)).to(
            torch.uint8
        ), index % 3


@pytest.mark.parametrize(("count", "batch", "batches"), [(6, 6, 1), (256, 256, 1), (600, 256, 2)])
def test_a_batch_is_256_or_the_whole_of_a_smaller_set(count: int, batch: int, batches: int) -> None:
    loader = ViewLoader(Pictures(count), views="byol", size=8)
    assert len(loader) == batches
    assert len(next(iter(loader)).crops[0]) == batch


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="the data set has 0 samples"):
        ViewLoader(Pictures(0))


def test_trainer_method_and_loader_and_nothing_else(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    module = BYOL(network, hidden_dim=8, out_dim=4)
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=str(tmp_path), enable_progress_bar=False,
        enable_model_summary=False, logger=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, ViewLoader(Pictures(8), views="byol", size=8))
    # the module brought its teacher's update itself
    assert module.clock.step == trainer.global_step == 2
    assert any(not torch.equal(value, before[name]) for name, value in module.teacher.named_parameters())
