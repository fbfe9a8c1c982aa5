"""Your own divergence: any function of two [N, P] tensors that gives [N]; its gradient goes to the student alone."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from selfdistill import EMATeacher
from selfdistill.networks import SmallCNN
from selfdistill.views import ViewLoader

digits = load_digits(n_class=10)
dataset = [
    (torch.from_numpy(x * 15.9).to(torch.uint8)[None], int(y))
    for x, y in zip(digits.images, digits.target, strict=True)
][:512]


def log_cosh(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).cosh().log().sum(1)


module = EMATeacher(SmallCNN(), hidden_dim=64, out_dim=32, divergence=log_cosh)
trainer = L.Trainer(
    max_epochs=1,
    accelerator="cpu",
    enable_progress_bar=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    logger=False,
)
trainer.fit(module, ViewLoader(dataset, views="byol", batch_size=64, size=16))
print(f"loss {trainer.callback_metrics['train/loss']:.3f}")
