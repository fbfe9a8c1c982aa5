"""A method as an auxiliary loss: the supervised module trains one backbone, BYOL's loss helps where labels are few."""

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from selfdistill import BYOL, Views
from selfdistill.callbacks import TeacherUpdate
from selfdistill.networks import SmallCNN
from selfdistill.views import ViewLoader


class Classifier(L.LightningModule):
    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.backbone = SmallCNN()
        self.classifier = nn.Linear(self.backbone.dim, 10)
        self.ssl = BYOL(self.backbone, hidden_dim=64, out_dim=32)  # shares the backbone; its teacher is a copy of it
        self.weight = weight

    def training_step(self, views: Views, batch_idx: int) -> Tensor:
        with torch.no_grad():
            targets = self.ssl.targets(views)
        terms = self.ssl.terms(self.ssl.predictions(views), targets)
        supervised = F.cross_entropy(self.classifier(self.backbone(views.crops[0]).pooled), views.labels)
        self.log_dict({"train/supervised": supervised, "train/ssl": terms["distill"]})
        return supervised + self.weight * terms["distill"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


digits = load_digits(n_class=10)
dataset = [
    (torch.from_numpy(x * 15.9).to(torch.uint8)[None], int(y))
    for x, y in zip(digits.images, digits.target, strict=True)
][:512]
update = TeacherUpdate(student="ssl.student", teacher="ssl.teacher", momentum=0.99)
trainer = L.Trainer(
    max_epochs=1,
    accelerator="cpu",
    callbacks=[update],
    enable_progress_bar=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    logger=False,
)
trainer.fit(Classifier(), ViewLoader(dataset, views="byol", batch_size=64, size=16))
print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
