"""Images in shards: few large files instead of many small ones, in a folder or behind the URL of an object store.

The shards are litdata's, as `selfdistill.data.packing` writes them. They are read at any place in any order, so that
order, resume and processes are the sampler's business as with every other source: litdata's own reader is made for
iteration (0.2.76: 0.44 ms a sample in random order, as it opens a shard anew for each; here 0.01 ms), and waits two
minutes for the rest of a shard that was cut short. Of litdata only the transport is used, and only for a URL.
"""

from __future__ import annotations

import json
import re
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfdistill.data.decode import UnreadableImageError, decoded
from selfdistill.data.images import IMAGENET_MEAN, IMAGENET_STD
from selfdistill.data.shard_files import MANIFEST, SCHEMES, Files, LocalFiles, RemoteFiles
from selfdistill.data.sources import Split

# What a sample is made of, in litdata's terms: the encoded image, its label, its name.
SAMPLE = ["bytes", "int", "bytes"]
_WINDOW_OF_A_URL = 16


class Shards:
    """A source of the shards that ``python -m src.pack`` wrote.

    Args:
        root: the folder, or the URL that it was copied to. A folder of a slow disk as ``local:<folder>`` is treated
            like a URL.
        size: side in pixels at which images are evaluated.
        window: shards whose images are mixed with one another at any time of an epoch, see `ShardImages.permutation`;
            None mixes all of a folder's, 16 of a URL's.
        cache: folder for the shards of a URL; None is ``~/.cache/selfdistill``.
        cache_gb: 10⁹ bytes of them that may lie there, beyond which those go that were not read for longest. Each
            shard is fetched once an epoch and machine if ``window`` shards and a few more fit.

    Raises:
        ValueError: a window below 1 or a cache of no size.
    """

    channels = 3
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(
        self,
        root: str | Path | None,
        size: int,
        *,
        window: int | None = None,
        cache: str | Path | None = None,
        cache_gb: float = 50,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"data.source.window={window} is not allowed; it must be at least 1, or null")
        if cache_gb <= 0:
            raise ValueError(f"data.source.cache_gb={cache_gb} is not allowed; it must be above 0")
        self.root = root
        self.size = size
        self.remote = bool(re.match(r"\w{2,}:", str(root)))
        self.window = _WINDOW_OF_A_URL if window is None and self.remote else window
        self.cache = Path.home() / ".cache" / "selfdistill" if cache is None else Path(cache).expanduser()
        self.cache_bytes = int(cache_gb * 1e9)

    def split(self, name: Split) -> ShardImages:
        """The split's images.

        Raises:
            ValueError: no finished packing there, a shard that is missing or cut short, or litdata missing for a URL.
        """
        files = self._located()
        index = json.loads(files.path(f"{name}/index.json").read_text(encoding="utf-8"))
        if index["config"]["data_format"] != SAMPLE or index["config"]["compression"]:
            raise ValueError(f"data.root={self.root}: {name}/index.json is not of python -m src.pack; pack the images")
        shards = [(f"{name}/{chunk['filename']}", chunk["chunk_bytes"]) for chunk in index["chunks"]]
        if isinstance(files, LocalFiles):
            for shard, size in shards:
                files.check(shard, size)
        labels = torch.from_numpy(np.load(files.path(f"{name}/labels.npy")))
        return ShardImages(files, shards, [chunk["chunk_size"] for chunk in index["chunks"]], labels, self.window)

    def _located(self) -> Files:
        if self.remote:
            return RemoteFiles.of(str(self.root), self.cache, self.cache_bytes)
        if self.root is None or not Path(self.root).is_dir():
            raise ValueError(
                f"data.root: {self.root} given, no such folder; give one that python -m src.pack wrote, or its URL: "
                f"{SCHEMES}"
            )
        if not (Path(self.root) / MANIFEST).is_file():
            raise ValueError(
                f"data.root={self.root} has no {MANIFEST}: no finished shards; "
                "python -m src.pack source=<folder of images> output=<this one> writes them, and continues where it was"
            )
        return LocalFiles(Path(self.root))


class ShardImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of shards, read when asked for, as uint8 [3, H, W] of whatever size they have.

    Nothing is held open, so that it may be copied into any number of processes.

    Args:
        files: where the shards lie.
        shards: name and bytes of each.
        counts: samples in each.
        labels: [N] int64, -1 for an image without label.
        window: as `Shards`.
    """

    def __init__(
        self, files: Files, shards: list[tuple[str, int]], counts: list[int], labels: Tensor, window: int | None
    ) -> None:
        self.files = files
        self.shards = shards
        self.counts = np.array(counts)
        self.ends = self.counts.cumsum()
        self.labels = labels
        self.window = window

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, place = self._place(index)
        encoded, name = self._sample(shard, place)
        try:
            return decoded(BytesIO(encoded)), self.labels[index]
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{self._named(shard, place)}, ({name}) {error}") from error

    def name(self, index: int) -> str:
        """Shard and place in it."""
        return self._named(*self._place(index))

    def permutation(self, generator: np.random.Generator) -> np.ndarray:
        """[N]: an order of an epoch in which ``window`` shards are in use at a time.

        The shards come in random order, the n-th of them with its samples spread evenly at random over the times n to
        n + window: each shard is left for good soon after it was first read, and there is no border that no sample
        crosses. All shards at once, which is a plain permutation, where the window has room for them.
        """
        if self.window is None or self.window >= len(self.counts):
            return generator.permutation(len(self))
        start = np.repeat(generator.permutation(len(self.counts)), self.counts)
        return np.argsort(start + self.window * generator.random(len(self)))

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, index, "right"))
        return shard, index - int(self.ends[shard] - self.counts[shard])

    def _sample(self, shard: int, place: int) -> tuple[bytes, str]:
        """Encoded image and name of a sample; litdata's format is described in its `BinaryWriter`."""
        try:
            with self.files.open(*self.shards[shard]) as file:
                file.seek(4 + 4 * place)
                begin, end = struct.unpack("<2I", file.read(8))
                file.seek(begin)
                sample = file.read(end - begin)
            image, label, name = struct.unpack_from("<3I", sample)
            if len(sample) != 12 + image + label + name:
                raise ValueError(f"{len(sample)} of {12 + image + label + name} bytes are there")
            return sample[12 : 12 + image], sample[12 + image + label :].decode()
        except (OSError, struct.error, UnicodeDecodeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UnreadableImageError(
                f"{self._named(shard, place)}, cannot be read ({reason}); copy the shard again"
            ) from error

    def _named(self, shard: int, place: int) -> str:
        return f"{self.files.root}/{self.shards[shard][0]}, sample {place}"
