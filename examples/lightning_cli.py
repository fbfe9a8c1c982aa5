"""LightningCLI: ``python lightning_cli.py fit --model.width 32 --trainer.max_epochs 1``.

It needs ``pip install 'selfdistill[lightning-cli]'``.
"""

import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits

from selfdistill import BYOL
from selfdistill.networks import SmallCNN
from selfdistill.views import ViewLoader


class SmallBYOL(BYOL):
    """The settings that the command line shall have, as plain numbers."""

    def __init__(self, width: int = 64, out_dim: int = 32) -> None:
        super().__init__(SmallCNN(), hidden_dim=width, out_dim=out_dim)

    def train_dataloader(self) -> ViewLoader:
        digits = load_digits()
        images = [torch.from_numpy(x * 15.9).to(torch.uint8)[None] for x in digits.images[:512]]
        return ViewLoader(images, views="byol", batch_size=64, size=16)


if __name__ == "__main__":
    LightningCLI(SmallBYOL, save_config_callback=None)
