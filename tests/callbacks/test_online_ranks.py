"""Online figures on several processes are those of one, although the sampler repeats images to fill the ranks.

The processes are this file run as a script.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from selfdistill.callbacks import OnlineKNN, OnlineProbe


def split(seed: int, count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 5, generator=generator) + 0.8 * labels[:, None], labels)


class Still(L.LightningModule):
    """Its weights do not move, so that any number of processes has the same network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(5, 4)

    def embed(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        features = self.net(batch[0])
        return {"loss": 0 * features.sum(), "features": features.detach()}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def figures(devices: int) -> tuple[float | None, float | None]:
    knn = OnlineKNN(k=5, bank=DataLoader(split(0, 31), batch_size=8))
    probe = OnlineProbe(3, step=lambda outputs, batch: (outputs["features"], batch[1]))
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[knn, probe],
        use_distributed_sampler=True, num_sanity_val_steps=0,
    )  # fmt: skip
    # 2 × 16 a step, 4 × 8 or 1 × 32: the same batches, in one order or the other
    train = DataLoader(split(2, 32), batch_size=32 // devices)
    trainer.fit(Still(), train, DataLoader(split(1, 21), batch_size=4))
    return knn.accuracy, probe.accuracy


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_find_what_one_finds(tmp_path: Path, processes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__)), str(tmp_path), str(processes)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [file.read_text(encoding="utf-8").split() for file in tmp_path.iterdir()]
    assert len(told) == processes
    knn, probe = figures(1)
    for rank in told:
        assert [float(value) for value in rank] == pytest.approx([knn, probe])


if __name__ == "__main__":
    found = figures(int(sys.argv[2]))
    Path(sys.argv[1], os.environ.get("LOCAL_RANK", "0")).write_text(" ".join(map(str, found)), encoding="utf-8")
