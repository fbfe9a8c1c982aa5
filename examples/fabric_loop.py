"""A loop of your own with Fabric: targets, predictions, terms, step, and the teacher's update after it."""

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits

from selfdistill import BYOL
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock
from selfdistill.teacher import ema_update
from selfdistill.views import ViewLoader

digits = load_digits(n_class=10)
dataset = [
    (torch.from_numpy(x * 15.9).to(torch.uint8)[None], int(y))
    for x, y in zip(digits.images, digits.target, strict=True)
][:512]
fabric = Fabric(accelerator="cpu", devices=1)
loader = ViewLoader(dataset, views="byol", batch_size=64, size=16)
module = BYOL(SmallCNN(), hidden_dim=64, out_dim=32).train()
optimizer = torch.optim.AdamW([p for _, p in module.trained_parameters()], lr=1e-3)
_, optimizer = fabric.setup(torch.nn.ModuleList([module.student, module.predictor]), optimizer)

epochs, step = 2, 0
for _epoch in range(epochs):
    for views in loader:
        module.clock = Clock(step, epochs * len(loader), len(loader))
        with torch.no_grad():
            targets = module.targets(views)
        loss = sum(module.terms(module.predictions(views), targets).values())
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        ema_update(module.teacher, module.student, module.teacher_policy.schedule(module.clock))
        step += 1
print(f"{step} steps, loss {loss.detach():.3f}")
