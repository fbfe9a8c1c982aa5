"""Where images come from: each source names its facts and gives the three splits.

Train is for learning and for the k-NN bank, validation for choices made on the way, test for final figures only. Where
a data set comes with fewer splits, the missing ones are taken out of train by a rule that depends on no seed, so that a
test image of one run is never a training image of another.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from selfdistill.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageFiles, Images, TensorImages

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# One training image in so many makes up a split that the data set lacks.
_HELD_OUT = 10
_HELD_OUT_OF_IMAGENET = 100
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


class Source(Protocol):
    """What a `DataModule` needs to know of a data set.

    Attributes:
        channels: of every image.
        size: side in pixels at which images are evaluated.
        mean: [channels] of the training images, values in [0, 1].
        std: [channels], likewise.
    """

    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...

    def split(self, name: Split) -> Images:
        """The images of a split; a label of -1 says that there is none."""
        ...


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels in 17 shades; embedded, no download.

    The splits never change: of each class, in the data set's order, the fifth of every six images is validation, the
    sixth test, the others are train.
    """

    channels = 1
    size = 8
    num_train = 1204
    # Of the training split.
    mean = (0.3052,)
    std = (0.3762,)

    def split(self, name: Split) -> TensorImages:
        """The split's images, float32 [n, 1, 8, 8] in [0, 1], and their digits."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        labels = torch.from_numpy(bunch.target).long()
        place = rank_in_class(labels) % 6
        chosen = {"train": place < 4, "validation": place == 4, "test": place == 5}[name]
        images = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
        return TensorImages(images[chosen], labels[chosen])


class Folder:
    """Image files in a folder: one subfolder a class, or images without labels at any depth.

    `root/train`, `root/val` (or `validation`) and `root/test` are taken as they stand. Without `test`, the images of
    `val` are the test split, as ImageNet's are used; a split that is still missing is one of every `held_out` images
    of train, told by the hash of its path. Without `train`, everything under `root` is divided in this way.

    Args:
        root: the folder.
        size: side in pixels at which images are evaluated.
        held_out: one training image in so many makes up a missing split.
    """

    channels = 3
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(self, root: str | Path | None, size: int, held_out: int = _HELD_OUT) -> None:
        self.root = root
        self.size = size
        self.held_out = held_out

    def split(self, name: Split) -> ImageFiles:
        """The split's images.

        Raises:
            ValueError: no such folder, or no images in it.
        """
        if self.root is None or not Path(self.root).is_dir():
            raise ValueError(
                f"data.root: {self.root} given, no such folder; give one with images, or one subfolder a class"
            )
        root = Path(self.root)
        folders = {split: found for split in SPLITS if (found := _subfolder(root, *_FOLDERS[split]))}
        if "test" not in folders and "validation" in folders:
            folders["test"] = folders.pop("validation")
        train = folders.setdefault("train", root)
        folder = folders.get(name, train)
        paths = _images_in(folder)
        if not paths:
            raise ValueError(f"data.root={root}: no images in {folder}; allowed are {', '.join(sorted(SUFFIXES))}")
        if folder == train:
            missing = [split for split in SPLITS if split not in folders]
            chosen = [path for path in paths if _part_of(path.relative_to(train), missing, self.held_out) == name]
            if not chosen:
                raise ValueError(
                    f"data.root: {root} given, its {len(paths)} images are too few to take a {name} split from, "
                    f"one of {self.held_out}; give more, or that split a folder, {_FOLDERS[name][0]}/"
                )
            paths = chosen
        return ImageFiles(paths, _labels(paths, folder, train))


class TorchvisionSet:
    """CIFAR-10, CIFAR-100, STL-10 or Imagenette (160 px) by way of torchvision, ImageNet as torchvision unpacks it.

    Validation is the tenth of every ten training images of a class; for Imagenette it is as `Folder` says, for ImageNet
    likewise, but one training image in a hundred. STL-10's 100,000 images without labels are part of train.

    Args:
        name: "cifar10", "cifar100", "stl10", "imagenette" or "imagenet".
        root: folder that the files are in, or are downloaded to.
        download: fetch the files where they are missing; not ImageNet's.

    Raises:
        ValueError: an unknown name, or no folder that could be ImageNet's.
    """

    channels = 3

    def __init__(self, name: str, root: str | Path | None, download: bool = False) -> None:
        if name not in _TORCHVISION:
            raise ValueError(f"data.source.name={name!r} is not known; allowed: {', '.join(_TORCHVISION)}")
        if name == "imagenet" and (root is None or not all((Path(root) / part).is_dir() for part in ("train", "val"))):
            raise ValueError(
                f"data.root={root} does not hold imagenet; give the folder that has train/ and val/ with one subfolder "
                "a class (n01440764, …), as torchvision.datasets.ImageNet unpacks the archives of image-net.org"
            )
        if root is None:
            raise ValueError(f"data.root=None does not hold {name}; give the folder its files are in or downloaded to")
        self.name = name
        self.root = Path(root)
        self.download = download
        self.size, self.mean, self.std = _TORCHVISION[name]

    def split(self, name: Split) -> Images:
        """The split's images.

        Raises:
            ValueError: the files are not there and `download` is off.
        """
        if self.name == "imagenet":
            return Folder(self.root, self.size, _HELD_OUT_OF_IMAGENET).split(name)
        if self.name == "imagenette":
            self._load("Imagenette", split="train", size="160px")
            return Folder(self.root / "imagenette2-160", self.size).split(name)
        if self.name == "stl10":
            found = self._load("STL10", split={"train": "train+unlabeled", "validation": "train", "test": "test"}[name])
            images, labels = torch.from_numpy(found.data), torch.from_numpy(found.labels).long()
        else:
            found = self._load(self.name.upper(), train=name != "test")
            images, labels = torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)
        if name == "test":
            return TensorImages(images, labels)
        held_out = (rank_in_class(labels) % _HELD_OUT == _HELD_OUT - 1) & (labels >= 0)
        chosen = held_out if name == "validation" else ~held_out
        return TensorImages(images[chosen], labels[chosen])

    def _load(self, dataset: str, **which: Any) -> Any:
        import torchvision

        try:
            return getattr(torchvision.datasets, dataset)(self.root, download=self.download, **which)
        except RuntimeError as error:
            raise ValueError(
                f"data.root={self.root} does not hold {self.name}; put its files there as "
                f"torchvision.datasets.{dataset} expects them, or set data.download=true"
            ) from error


# Side in pixels at which images are evaluated, mean and standard deviation of the training images.
_TORCHVISION: dict[str, tuple[int, tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": (32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": (32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": (96, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "imagenette": (128, IMAGENET_MEAN, IMAGENET_STD),
    "imagenet": (224, IMAGENET_MEAN, IMAGENET_STD),
}


def rank_in_class(labels: Tensor) -> Tensor:
    """[N] int64: how many samples of the same class stand before each one."""
    seen: Counter[int] = Counter()
    ranks = []
    for label in labels.tolist():
        ranks.append(seen[label])
        seen[label] += 1
    return torch.tensor(ranks)


def _subfolder(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _labels(paths: list[Path], folder: Path, train: Path) -> Tensor:
    """Position of each image's subfolder among those of train; -1 for all where train has images in no subfolder."""
    classes = sorted({path.relative_to(train).parts[0] for path in _images_in(train)})
    if not all((train / name).is_dir() for name in classes):
        return torch.full((len(paths),), -1)
    number = {name: label for label, name in enumerate(classes)}
    names = [path.relative_to(folder).parts[0] for path in paths]
    if unknown := set(names) - set(number):
        raise ValueError(f"data.root: {folder} has classes that {train} has not: {', '.join(sorted(unknown))}")
    return torch.tensor([number[name] for name in names])


def _part_of(path: Path, missing: list[Split], held_out: int) -> Split:
    """The split that an image of the training folder belongs to, one in `held_out` to each missing split."""
    place = int.from_bytes(sha256(path.as_posix().encode()).digest()[:8]) % held_out
    return missing[place] if place < len(missing) else "train"
