"""Your own network, your own images, and nothing else: one Trainer, one method, one loader."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn

from selfdistill import BYOL
from selfdistill.views import ViewLoader

digits = load_digits(n_class=10)
dataset = [
    (torch.from_numpy(x * 15.9).to(torch.uint8)[None], int(y))
    for x, y in zip(digits.images, digits.target, strict=True)
][:512]  # images, or (image, label): PIL or uint8 [C, H, W]

network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())  # [B, D] or [B, D, h, w]
module = BYOL(network, hidden_dim=64, out_dim=32)
trainer = L.Trainer(
    max_epochs=1,
    accelerator="cpu",
    enable_progress_bar=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    logger=False,
)
trainer.fit(module, ViewLoader(dataset, views="byol", batch_size=64, size=16))

features = module.eval()(torch.randn(2, 3, 16, 16))
print(f"loss {trainer.callback_metrics['train/loss']:.3f}, features {tuple(features.shape)}")
