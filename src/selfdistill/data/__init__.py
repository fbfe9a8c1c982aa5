"""Data: sources of images, the order in which they are drawn, and the Lightning data module over both."""

from selfdistill.data.datamodule import DataModule
from selfdistill.data.images import ImageFiles, TensorImages
from selfdistill.data.sampler import EpochIndices, ResumableBatchSampler, ResumableLoader
from selfdistill.data.shapes import Shapes
from selfdistill.data.sources import SPLITS, Digits, Folder, Source, Split, TorchvisionSet
from selfdistill.data.streaming import ShardImages, Shards

__all__ = [
    "SPLITS",
    "DataModule",
    "Digits",
    "EpochIndices",
    "Folder",
    "ImageFiles",
    "ResumableBatchSampler",
    "ResumableLoader",
    "Shapes",
    "ShardImages",
    "Shards",
    "Source",
    "Split",
    "TensorImages",
    "TorchvisionSet",
]
