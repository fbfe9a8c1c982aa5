"""`DataModule`: one source, one recipe; training batches as `Views`, evaluation batches as plain images and labels."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfdistill.compatibility import check_batch_size
from selfdistill.data.batches import EvaluationBatches, RawBatches, whole_images
from selfdistill.data.images import Images, TensorImages
from selfdistill.data.labels import check_labelled, labelled_part
from selfdistill.data.sampler import ResumableBatchSampler, ResumableLoader, as_it_is
from selfdistill.data.skipping import SkippingImages
from selfdistill.data.sources import SPLITS, Source, Split
from selfdistill.data.streaming import ShardImages
from selfdistill.distributed import world_size
from selfdistill.views.augment import ViewBatches
from selfdistill.views.augment_batched import batched_views
from selfdistill.views.specs import ViewRecipe
from selfdistill.views.views import RawBatch

OnError = Literal["raise", "skip"]


class DataModule(L.LightningDataModule):
    """Loaders over a source.

    Training batches become `Views` on the training device (the batched engine, for images held in memory) or in the
    loader's workers (the CPU engine, for all others); which one is `engine`. Their views depend on seed, epoch and
    sample alone, and training resumes at the exact batch.

    Args:
        source: the images.
        recipe: the views to make of them.
        batch_size: training samples a step and process.
        num_workers: processes that load; 0 loads in the training process.
        seed: of the order and of the views.
        eval_batch_size: samples a batch of the evaluation loaders.
        drop_last: leave out the epoch's last batch where it is smaller.
        labelled: whose labels training batches have, the others' being -1: a share of each class (float), a number of
            images a class (int), all (None). The same ones whatever the seed; evaluation uses all labels.
        on_error: what an image that cannot be read leads to: ``raise``, or ``skip``, see `SkippingImages`.
        micro_batches: how many of ``batch_size`` make a training batch; the last of an epoch may have fewer.
        limit: train on the first so many images only; None on all. Evaluation uses all.
    """

    def __init__(
        self,
        source: Source,
        recipe: ViewRecipe,
        *,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        eval_batch_size: int = 512,
        drop_last: bool = True,
        labelled: float | None = None,
        on_error: OnError = "raise",
        micro_batches: int = 1,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        check_labelled(labelled)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("micro_batches", micro_batches, 1),
            ("limit", limit, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"data.{name}={value} is not allowed; it must be at least {least}")
        if on_error not in get_args(OnError):
            raise ValueError(f"data.on_error={on_error!r} is not allowed; it must be {' or '.join(get_args(OnError))}")
        self.source = source
        self.recipe = recipe
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.eval_batch_size = eval_batch_size
        self.drop_last = drop_last
        self._labelled_part = labelled
        self.on_error = on_error
        self.micro_batches = micro_batches
        self.limit = limit
        self._splits: dict[Split, Images] = {}
        self._train_loader: ResumableLoader | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the splits, so that nothing turns out missing after hours, and check batch size and recipe.

        Raises:
            ValueError: a split is missing, or more samples a batch than there are, or views that these images forbid.
        """
        check_batch_size(self.batch_size, self.num_train, world_size())
        if self.labelled:
            for name in SPLITS:
                self._split(name)
        self.recipe.check_channels(self.image_channels)
        if self.recipe.engine == "batched" and not isinstance(self._split("train"), TensorImages):
            raise ValueError(
                "views.engine=batched needs images of one size held in memory, which this data is not; "
                "choose views.engine=cpu or auto"
            )

    @property
    def engine(self) -> str:
        """The engine that makes the training views: "batched" or "cpu"."""
        if self.recipe.engine != "auto":
            return self.recipe.engine
        return "batched" if isinstance(self._split("train"), TensorImages) else "cpu"

    @property
    def engine_choice(self) -> str:
        """Which engine makes the training views, and why, for the reader."""
        where = "whole batches at once, on the device" if self.engine == "batched" else "one by one, as they are loaded"
        if self.recipe.engine != "auto":
            return f"{where} (views.engine={self.recipe.engine})"
        why = "the images are in memory, of one size" if self.engine == "batched" else "the images are read from files"
        return f"{where} ({why})"

    @property
    def seconds_waited(self) -> float:
        """Time that training has spent waiting for its loader."""
        return 0.0 if self._train_loader is None else self._train_loader.seconds_waited

    @property
    def labelled(self) -> bool:
        """Whether there are labels to evaluate with."""
        return bool((self._split("train").labels >= 0).any())

    @property
    def num_train(self) -> int:
        """Number of training samples."""
        whole = len(self._split("train"))
        return whole if self.limit is None else min(whole, self.limit)

    @property
    def image_channels(self) -> int:
        """Channels of every image."""
        return self.source.channels

    @property
    def image_size(self) -> int:
        """Side in pixels at which images are evaluated."""
        return self.source.size

    def train_dataloader(self) -> ResumableLoader:
        """Loader of `RawBatch` (batched engine; the transfer hook makes the views) or of `Views` (CPU engine)."""
        check_batch_size(self.batch_size, self.num_train, world_size())
        train = copy.copy(self._split("train"))
        train.labels = labelled_part(train.labels, self._labelled_part)
        batches: Dataset[Any]
        if self.engine == "batched" and isinstance(train, TensorImages):
            batches = RawBatches(train, self.recipe, self.seed, labelled=self.labelled)
        else:
            batches = ViewBatches(
                train, self.recipe, seed=self.seed, mean=self.source.mean, std=self.source.std, labelled=self.labelled
            )
        stored = train.images if isinstance(train, SkippingImages) else train
        permutation = stored.permutation if isinstance(stored, ShardImages) and self.limit is None else None
        order = ResumableBatchSampler(
            self.num_train,
            self.batch_size * self.micro_batches,
            self.seed,
            drop_last=self.drop_last,
            permutation=permutation,
            unit=self.batch_size,
        )
        loader = ResumableLoader(batches, order, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())
        loader.trainer = self.trainer
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]] | list[Any]:
        """The validation split's evaluation loader; none where there are no labels to validate with."""
        return self.evaluation_loader("validation") if self.labelled else []

    def evaluation_loader(self, split: Split) -> DataLoader[tuple[Tensor, Tensor]]:
        """Loader of (normalised images [B, C, size, size], labels [B]), without augmentation.

        In the split's order; images without a label are left out.

        Raises:
            ValueError: an unknown split, or one without labels.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not known; allowed: {', '.join(SPLITS)}")
        images = self._split(split)
        if not (images.labels >= 0).any():
            raise ValueError(f"the {split} images have no labels, so nothing can be evaluated on them")
        return DataLoader(
            EvaluationBatches(images, self.source.size, self.source.mean, self.source.std),
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            collate_fn=as_it_is,
            pin_memory=torch.cuda.is_available(),
            # An iterator draws one number; from the global generator, an evaluation would change what follows it.
            generator=torch.Generator(),
        )

    def whole_images(self, index: Tensor) -> Tensor:
        """[B, C, size, size] float32 in [0, 1]: training images ``index`` [B] as they would be evaluated."""
        return whole_images(self._split("train"), index, self.source.size)[0]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As Lightning's, but the indices of a `RawBatch` stay on the CPU."""
        if isinstance(batch, RawBatch):
            return batch.to(device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the views of a `RawBatch`; anything else passes."""
        if not isinstance(batch, RawBatch):
            return batch
        return batched_views(batch, self.recipe, seed=self.seed, mean=self.source.mean, std=self.source.std)

    @property
    def unreadable(self) -> list[str]:
        """Names of the images that ``on_error="skip"`` has skipped so far, each once."""
        return [name for images in self._splits.values() if isinstance(images, SkippingImages) for name in images.names]

    def _split(self, name: Split) -> Images:
        if name not in self._splits:
            images = self.source.split(name)
            if self.on_error == "skip" and not isinstance(images, TensorImages):
                images = SkippingImages(images)
            self._splits[name] = images
        return self._splits[name]
