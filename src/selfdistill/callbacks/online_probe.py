"""A linear classifier that learns beside the method and never touches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from selfdistill.callbacks.online_evaluation import Embed, embedded, validated_rows
from selfdistill.distributed import all_reduce_sum
from selfdistill.evaluation.features import unit_rows

Step = Callable[[Any, Any], tuple[Tensor, Tensor]]


class OnlineProbe(L.Callback):
    """Linear probe on the features of the training step; logs ``train/probe`` and ``val/probe`` accuracy.

    The classifier lives in the callback with an SGD of its own: it is no parameter of the module, so its
    gradients reach neither the backbone nor the clip norm, and no optimizer, teacher or export sees it. Features are
    those that the step returned, of the network that the method evaluates, detached and brought to length √D;
    nothing is computed again. It starts at zero, draws no random number, and is stored in the checkpoint. Labels below
    0 are none.

    Args:
        classes: number of classes.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: of SGD.
        step: ``(outputs of the step, batch) -> (features [N, D], labels [N])`` for a module that is not ours.
        embed: ``(module, images) -> [B, D]`` for validation; None calls the module's own ``embed``.

    Attributes:
        accuracy: the last figure of the validation; None before.
        measured_at: index of the optimizer step after which it was measured; −1 before.

    Raises:
        ValueError: a setting out of its range; labels that ``classes`` does not cover.
    """

    logs: ClassVar[tuple[str, ...]] = ("train/probe", "val/probe")

    def __init__(
        self,
        classes: int,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        step: Step | None = None,
        embed: Embed | None = None,
    ) -> None:
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
            raise ValueError(f"OnlineProbe.classes: {classes} given, allowed is 2 or more")
        if not lr > 0:
            raise ValueError(f"OnlineProbe.lr: {lr} given, allowed is above 0")
        self.classes = classes
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._step = step
        self._embed = embed
        self._classifier: torch.nn.Linear | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._loaded: dict[str, Any] | None = None
        self._right: dict[int, list[Tensor]] = {}
        self._told = False
        self.accuracy: float | None = None
        self.measured_at = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        found = self._step(outputs, batch) if self._step is not None else _returned(pl_module, outputs, batch)
        if found is None:
            if not self._told:
                self._told = True
                rank_zero_warn(
                    f"OnlineProbe is off: the step of {type(pl_module).__name__} gave no features or the batch no "
                    "labels; give OnlineProbe(step=…)"
                )
            return
        features, labels = found[0].detach(), found[1].to(found[0].device)
        # inference mode or no_grad of the caller must not stop it, nor autocast change it
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            right, counted = self._learn(features.clone(), labels)
        pl_module.log("train/probe", right / counted, batch_size=len(labels))

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._right = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or self._classifier is None:
            return
        if self._embed is None and isinstance(outputs, dict) and "embedding" in outputs:
            features, labels = outputs["embedding"], outputs["labels"]
        else:
            images, labels = batch
            features = embedded("OnlineProbe", self._embed, pl_module, images)
        if labels is None:
            return
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            predicted = self._scores(self._classifier, features).argmax(1)
        # −1 where there is no label
        right = torch.where(labels >= 0, (predicted == labels).long(), -1)
        self._right.setdefault(dataloader_idx, []).append(right.cpu())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._right:
            return
        parts = [validated_rows(trainer, i, torch.cat(rows), pl_module.device) for i, rows in self._right.items()]
        right = torch.cat(parts)
        self._right = {}
        if (right >= 0).any():
            self.accuracy = right[right >= 0].double().mean().item()
            self.measured_at = trainer.global_step - 1
            pl_module.log("val/probe", self.accuracy, prog_bar=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        if self._classifier is None or self._optimizer is None:
            return self._loaded or {}
        return {
            "classifier": self._classifier.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "accuracy": self.accuracy,
            "measured_at": self.measured_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict or None
        self._classifier = self._optimizer = None
        self.accuracy = state_dict.get("accuracy")
        self.measured_at = state_dict.get("measured_at", -1)

    def _learn(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step; (labels predicted rightly, labels), counted over the rows that have one."""
        if (self._classifier is None or labels.device.type == "cpu") and labels.max() >= self.classes:
            raise ValueError(f"OnlineProbe.classes: {self.classes} given, a label is {int(labels.max())}; set classes")
        classifier, optimizer = self._probe(features)
        scores = self._scores(classifier, features)
        # ranks sum their gradients, so each divides by the labels of all; none anywhere gives 0
        counted = all_reduce_sum((labels >= 0).sum()).clamp_min(1)
        loss = F.cross_entropy(scores, labels, ignore_index=-1, reduction="sum") / counted
        optimizer.zero_grad()
        loss.backward()
        for parameter in classifier.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(all_reduce_sum(parameter.grad))
        optimizer.step()
        return all_reduce_sum((scores.detach().argmax(1) == labels).sum()), counted

    @staticmethod
    def _scores(classifier: torch.nn.Linear, features: Tensor) -> Tensor:
        # a common length makes one learning rate fit every network
        return classifier(unit_rows(features.float()) * features.shape[-1] ** 0.5)

    def _probe(self, features: Tensor) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        if self._classifier is not None and self._optimizer is not None:
            return self._classifier, self._optimizer
        # on the meta device first: drawing the initial weights would move the global generator
        classifier = torch.nn.Linear(features.shape[-1], self.classes, device="meta").to_empty(device=features.device)
        for parameter in classifier.parameters():
            torch.nn.init.zeros_(parameter)
        optimizer = torch.optim.SGD(
            classifier.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        if self._loaded is not None:
            classifier.load_state_dict(self._loaded["classifier"])
            optimizer.load_state_dict(self._loaded["optimizer"])
        self._classifier, self._optimizer, self._loaded = classifier, optimizer, None
        return classifier, optimizer


def _returned(pl_module: L.LightningModule, outputs: Any, batch: Any) -> tuple[Tensor, Tensor] | None:
    """Features ``[V·B, D]`` of the evaluated network and their labels, from a step of ours."""
    labels = getattr(batch, "labels", None)
    if labels is None or not isinstance(outputs, dict):
        return None
    for side in (getattr(pl_module, "evaluates", "student"), "student"):
        features = getattr(outputs.get(side), "features", None)
        if isinstance(features, Tensor) and features.ndim >= 2:
            rows = features.flatten(0, -2)
            return rows, labels.repeat(len(rows) // len(labels))
    return None
