"""The callbacks on a LightningModule that knows nothing of this package."""

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from selfdistill.callbacks import CollapseMonitor, OnlineKNN, OnlineProbe, TeacherUpdate
from selfdistill.teacher import make_teacher

Batch = tuple[Tensor, Tensor]


class MeanTeacher(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.ema_net = make_teacher(self.net)  # an equal copy without gradient or dropout

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, _ = batch
        embedding = self.net(images + 0.1 * torch.randn_like(images))
        return {
            "loss": 1 - F.cosine_similarity(embedding, self.ema_net(images)).mean(),
            "embedding": embedding.detach(),
        }

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def embed(self, images: Tensor) -> Tensor:
        return self.net(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=1e-3)


digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])
callbacks = [
    OnlineKNN(bank=DataLoader(train, batch_size=256)),
    OnlineProbe(classes=10, step=lambda outputs, batch: (outputs["embedding"], batch[1])),
    CollapseMonitor(every=5, embed=lambda outputs: outputs["embedding"]),
    TeacherUpdate(student="net", teacher="ema_net", momentum=0.9),  # after every executed optimizer step
]
trainer = L.Trainer(
    max_epochs=5,
    accelerator="cpu",
    callbacks=callbacks,
    enable_progress_bar=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    logger=False,
)
trainer.fit(MeanTeacher(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=256))
print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
