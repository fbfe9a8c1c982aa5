"""Evaluation while training: figures of the network that the method evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from selfdistill.evaluation.features import evaluating, extract_features
from selfdistill.evaluation.knn import knn_accuracy

Embed = Callable[[L.LightningModule, Tensor], Tensor]


class OnlineKNN(L.Callback):
    """k-NN accuracy on the validation images, logged as ``val/knn``.

    The bank is the training split without augmentation; the queries are the validation batches. The
    data module gives the bank through ``evaluation_loader("train")``, or pass ``bank``. Where there is
    no bank, no validation loader or there are no labels, nothing is logged and one line says so.

    Args:
        k: neighbours that vote.
        temperature: of the vote, exp(similarity / temperature).
        every_n_epochs: evaluate at the first validation and then each so many epochs; in between the last value
            is logged again.
        bank: a loader of ``(images, labels)``; None asks the data module.
        embed: ``(module, images) -> [B, D]``; None calls the module's own ``embed``.

    Raises:
        ValueError: a count below 1, or a module without ``embed`` where none is given.
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        every_n_epochs: int = 1,
        bank: Iterable[Any] | None = None,
        embed: Embed | None = None,
    ) -> None:
        for name, value in (("k", k), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"OnlineKNN.{name}: {value} given, allowed is 1 or more")
        self.k = k
        self.temperature = temperature
        self.every_n_epochs = every_n_epochs
        self._bank = bank
        self._embed = embed
        self._queries: list[tuple[Tensor, Tensor]] = []
        self.accuracy: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bank is None and getattr(trainer.datamodule, "labelled", True) is False:  # type: ignore[attr-defined]
            L.pytorch.utilities.rank_zero_info("k-NN while training is off: the data has no labels")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._queries = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._due(trainer):
            return
        if self._embed is None and isinstance(outputs, dict) and "embedding" in outputs:
            embedding, labels = outputs["embedding"], outputs["labels"]
        else:
            images, labels = batch
            embedding = self._features(pl_module, images)
        if labels is not None:
            self._queries.append((embedding.detach().float().cpu(), labels.cpu()))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._due(trainer) and self._queries:
            loader = self._bank if self._bank is not None else _bank_of(trainer)
            if loader is not None:
                with evaluating(pl_module):
                    bank, bank_labels = extract_features(
                        lambda images: self._features(pl_module, images), loader, pl_module.device
                    )
                queries = torch.cat([q for q, _ in self._queries])
                labels = torch.cat([y for _, y in self._queries])
                self.accuracy = knn_accuracy(bank, bank_labels, queries, labels, k=self.k, temperature=self.temperature)
        self._queries = []
        if self.accuracy is not None and not trainer.sanity_checking:
            pl_module.log("val/knn", self.accuracy, prog_bar=True, rank_zero_only=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy = state_dict["accuracy"]

    def _due(self, trainer: L.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        epochs = trainer.max_epochs or -1
        epoch = trainer.current_epoch + 1
        return epoch % self.every_n_epochs == 0 or epoch == epochs or self.accuracy is None

    def _features(self, pl_module: L.LightningModule, images: Tensor) -> Tensor:
        if self._embed is not None:
            return self._embed(pl_module, images)
        embed = getattr(pl_module, "embed", None)
        if embed is None:
            raise ValueError(f"OnlineKNN: {type(pl_module).__name__} has no embed(images); give OnlineKNN(embed=…)")
        return embed(images)


def _bank_of(trainer: L.Trainer) -> DataLoader[Any] | None:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is None or not hasattr(datamodule, "evaluation_loader"):
        return None
    return datamodule.evaluation_loader("train") if getattr(datamodule, "labelled", True) else None
