"""Data: sources of images, the order in which they are drawn, and the Lightning data module over both."""

from selfdistill.data.datamodule import DataModule
from selfdistill.data.sampler import EpochIndices, ResumableBatchSampler, ResumableLoader
from selfdistill.data.sources import SPLITS, Digits, Source, Split, TensorImages

__all__ = [
    "SPLITS",
    "DataModule",
    "Digits",
    "EpochIndices",
    "ResumableBatchSampler",
    "ResumableLoader",
    "Source",
    "Split",
    "TensorImages",
]
