"""Your own method: three hooks; head, optimizer and schedule of your own. The base does the rest of the step."""

from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from selfdistill import SelfDistillModule, Views
from selfdistill.networks import SmallCNN, Tower
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Clock, Schedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import ViewLoader


@dataclass(frozen=True)
class Sawtooth(Schedule):
    """The teacher jumps halfway to the student at the start of each epoch and then rests."""

    def __call__(self, clock: Clock) -> float:
        return 0.5 if clock.step % clock.steps_per_epoch == 0 else 1.0


class Mine(SelfDistillModule[Tensor, Tensor]):
    def __init__(self, backbone: nn.Module) -> None:
        head = nn.Sequential(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 32))
        optimizer = OptimizerRecipe(partial(torch.optim.RMSprop, lr=1e-3), warmup="5 steps")
        super().__init__(Tower(backbone, head), teacher=TeacherPolicy(Sawtooth()), optimizer=optimizer)

    def targets(self, views: Views) -> Tensor:
        return self.teacher(views.teacher[1])[1]

    def predictions(self, views: Views) -> Tensor:
        return self.student(views.student[0])[1]

    def terms(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"distill": (predictions.float() - targets.float()).square().sum(1).mean()}


digits = load_digits(n_class=10)
dataset = [
    (torch.from_numpy(x * 15.9).to(torch.uint8)[None], int(y))
    for x, y in zip(digits.images, digits.target, strict=True)
][:512]
module = Mine(SmallCNN())
trainer = L.Trainer(
    max_epochs=2,
    accelerator="cpu",
    enable_progress_bar=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    logger=False,
)
trainer.fit(module, ViewLoader(dataset, views="byol", batch_size=64, size=16))
print(f"loss {trainer.callback_metrics['train/loss']:.3f}")
