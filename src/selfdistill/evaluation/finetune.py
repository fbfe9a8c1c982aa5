"""Fine-tuning: the evaluated network goes on learning, with labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.evaluation.features import evaluating
from selfdistill.evaluation.label_fraction import draw_share
from selfdistill.methods import SelfDistillModule


def finetune(
    module: SelfDistillModule[Any, Any],
    train: Iterable[tuple[Tensor, Tensor]],
    test: Iterable[tuple[Tensor, Tensor]],
    *,
    fraction: float = 1.0,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.0,
    augment: bool = False,
    seed: int = 0,
) -> float:
    """Test accuracy, in [0, 1], of a copy of the evaluated network and a linear classifier, trained together.

    AdamW with a linear warm-up over a tenth of the steps and a cosine to zero; weight decay on matrices only; images
    are not augmented unless asked for. A short form of what papers do (BYOL, arXiv 2006.07733, appendix C.2; I-JEPA,
    2301.08243), to compare networks with each other rather than with published figures. ``module`` is left as it was.

    Args:
        module: whose ``embed`` is fine-tuned.
        train: batches of (images ``[B, C, H, W]`` of one size, labels ``[B]``).
        test: likewise; a class that the training images lack counts as wrong.
        fraction: of the labels of each class, above 0 and up to 1 (0.01 and 0.1 are the papers' low-label rows).
        epochs: passes over the training images.
        batch_size: images a step.
        lr: highest learning rate.
        weight_decay: of AdamW.
        label_smoothing: share of the target spread over all classes.
        augment: shift and mirror the training images, see :func:`shifted_and_mirrored`; not for digits.
        seed: of the drawn labels, the order and the augmentation; the global random state is not touched.

    Raises:
        ValueError: a setting out of its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: give a number above 0 and up to 1")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size}: give at least one of each")
    with evaluating(module), torch.inference_mode(False), torch.enable_grad():
        batches = list(train)
        images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
        order = torch.Generator().manual_seed(seed)
        if fraction < 1:
            rows = draw_share(labels, fraction, order)
            images, labels = images[rows], labels[rows]
        classes, labels = labels.unique(return_inverse=True)
        torch.manual_seed(seed)  # dropout and drop path draw from the global generator, which evaluating gives back
        network = FineTuned(module, len(classes), images[:1])
        _train(network, images, labels, epochs, batch_size, lr, weight_decay, label_smoothing, augment, order)
        return _accuracy(network, classes, test)


class FineTuned(nn.Module):
    """A trainable copy of a module's evaluated backbone, and a linear classifier that starts at zero."""

    def __init__(self, module: SelfDistillModule[Any, Any], classes: int, image: Tensor) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        # a teacher takes no gradient by itself
        self.backbone = self.module.evaluated_tower.backbone.requires_grad_(True)
        self.device = module.device
        with torch.no_grad():
            width = self.module.embed(image.to(self.device)).shape[1]
        self.classifier = nn.Linear(width, classes, device=self.device)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.module.embed(images.to(self.device, non_blocking=True)))

    def train(self, mode: bool = True) -> FineTuned:
        # not the whole module, whose teacher keeps a mode of its own
        self.training = mode
        self.backbone.train(mode)
        return self


def _train(
    network: FineTuned,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    label_smoothing: float,
    augment: bool,
    order: torch.Generator,
) -> None:
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
    )
    steps = epochs * math.ceil(len(images) / batch_size)
    warmup = max(1, steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, (1 + math.cos(math.pi * max(step - warmup, 0) / (steps - warmup or 1))) / 2
        ),
    )
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order).split(batch_size):
            if len(rows) == 1 < len(images):
                continue  # batch statistics of one image are none
            batch = shifted_and_mirrored(images[rows], order) if augment else images[rows]
            loss = F.cross_entropy(
                network(batch).float(), labels[rows].to(network.device), label_smoothing=label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    network.eval()


def shifted_and_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image ``[B, C, H, W]`` shifted by up to an eighth of its sides, what enters being its reflection, and
    mirrored left to right half of the time."""
    count, _, height, width = images.shape
    up, left = height // 8, width // 8
    padded = F.pad(images, (left, left, up, up), mode="reflect")
    rows = torch.randint(2 * up + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * left + 1, (count, 1), generator=generator) + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def _accuracy(network: FineTuned, classes: Tensor, test: Iterable[tuple[Tensor, Tensor]]) -> float:
    right = count = 0
    for images, labels in test:
        predicted = classes[network(images).argmax(1).cpu()]
        right += int((predicted == labels).sum())
        count += len(labels)
    return right / count
