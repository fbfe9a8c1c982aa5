"""Evaluation while training: figures of the network that the method evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from selfdistill.evaluation.features import evaluating
from selfdistill.evaluation.gather import extract_over_ranks, unpadded
from selfdistill.evaluation.knn import knn_accuracy

Embed = Callable[[L.LightningModule, Tensor], Tensor]


class OnlineKNN(L.Callback):
    """k-NN accuracy on the validation images, logged as ``val/knn``.

    The bank is the training split without augmentation; the queries are the validation batches. The
    data module gives the bank through ``evaluation_loader("train")``, or pass ``bank``. Where there is
    no bank, no validation loader or there are no labels, nothing is logged and one line says so. With several
    processes the figure is the same as with one: samples that a distributed sampler repeats count once.

    Args:
        k: neighbours that vote.
        temperature: of the vote, exp(similarity / temperature).
        every_n_epochs: evaluate at the first validation, then each so many epochs, and at the last; in between
            ``trainer.callback_metrics`` keeps the last value, and no logger gets one.
        bank: a loader of ``(images, labels)``; None asks the data module.
        embed: ``(module, images) -> [B, D]``; None calls the module's own ``embed``.

    Attributes:
        accuracy: the last figure; None before.
        measured_at: index of the optimizer step after which it was measured; −1 before.

    Raises:
        ValueError: a count below 1, or a module without ``embed`` where none is given.
    """

    logs: ClassVar[tuple[str, ...]] = ("val/knn",)

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
        self._queries: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.accuracy: float | None = None
        self.measured_at = -1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning sets the attribute without declaring it.
        if self._bank is None and getattr(trainer.datamodule, "labelled", True) is False:  # type: ignore[attr-defined]
            L.pytorch.utilities.rank_zero_info("k-NN while training is off: the data has no labels")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._queries = {}

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
            rows = (embedding.detach().float().cpu(), labels.cpu())
            self._queries.setdefault(dataloader_idx, []).append(rows)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if self._due(trainer) and self._queries:
            loader = self._bank if self._bank is not None else _bank_of(trainer)
            if loader is not None:
                with evaluating(pl_module):
                    bank, bank_labels = extract_over_ranks(
                        lambda images: self._features(pl_module, images), loader, pl_module.device
                    )
                queries, labels = (
                    torch.cat([validated_rows(trainer, i, torch.cat(part), pl_module.device) for i, part in columns])
                    for columns in self._columns()
                )
                self.accuracy = knn_accuracy(bank, bank_labels, queries, labels, k=self.k, temperature=self.temperature)
                self.measured_at = trainer.global_step - 1
                for logger in trainer.loggers if fitting else ():
                    row = {"val/knn": self.accuracy, "epoch": trainer.current_epoch}
                    # the step of Lightning's own rows, which global_step is not where there are two optimizers
                    logger.log_metrics(row, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._queries = {}
        if self.accuracy is not None and not trainer.sanity_checking:
            # on every rank and after every validation: a ModelCheckpoint looks for its monitor on each
            pl_module.log("val/knn", self.accuracy, prog_bar=True, logger=False if fitting else None, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "measured_at": self.measured_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy = state_dict["accuracy"]
        self.measured_at = state_dict.get("measured_at", -1)

    def _columns(self) -> list[list[tuple[int, list[Tensor]]]]:
        """Embeddings, then labels, of each validation loader."""
        return [[(i, [row[column] for row in rows]) for i, rows in self._queries.items()] for column in (0, 1)]

    def _due(self, trainer: L.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        epochs = trainer.max_epochs or -1
        epoch = trainer.current_epoch + 1
        return epoch % self.every_n_epochs == 0 or epoch == epochs or self.accuracy is None

    def _features(self, pl_module: L.LightningModule, images: Tensor) -> Tensor:
        return embedded(type(self).__name__, self._embed, pl_module, images)


def embedded(name: str, embed: Embed | None, pl_module: L.LightningModule, images: Tensor) -> Tensor:
    """``embed(pl_module, images)``, or the module's own ``embed``; ValueError, naming the callback, without both."""
    if embed is not None:
        return embed(pl_module, images)
    own = getattr(pl_module, "embed", None)
    if own is None:
        raise ValueError(f"{name}: {type(pl_module).__name__} has no embed(images); give {name}(embed=…)")
    return own(images)


def validated_rows(trainer: L.Trainer, loader: int, rows: Tensor, device: torch.device) -> Tensor:
    """``rows`` of one validation loader, of all processes and each sample once, on the CPU."""
    loaders: Any = trainer.val_dataloaders
    if isinstance(loaders, list | tuple):
        loaders = loaders[loader]
    return unpadded(rows.to(device), getattr(loaders, "sampler", None)).cpu()


def _bank_of(trainer: L.Trainer) -> DataLoader[Any] | None:
    # Lightning sets the attribute without declaring it.
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is None or not hasattr(datamodule, "evaluation_loader"):
        return None
    return datamodule.evaluation_loader("train") if getattr(datamodule, "labelled", True) else None
