"""Where the files of shards lie: a folder, or the URL of an object store with a folder that keeps some of them."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Protocol

# The file that a finished packing writes last.
MANIFEST = "shards.json"
SCHEMES = "s3://, gs://, azure://, r2://, hf:// or local:<folder>"


class Files(Protocol):
    """Files with names relative to a root."""

    @property
    def root(self) -> Path | str: ...

    def path(self, name: str) -> Path:
        """A copy of the file on this machine, to be read at once."""
        ...

    def open(self, name: str, size: int) -> BinaryIO:
        """The shard ``name`` of ``size`` bytes, for reading."""
        ...


class LocalFiles:
    """Files of a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """The file itself.

        Raises:
            ValueError: it is missing.
        """
        if not (self.root / name).is_file():
            raise ValueError(f"data.root={self.root}: {name} is missing; copy it again")
        return self.root / name

    def open(self, name: str, size: int) -> BinaryIO:
        """The file, whatever its size is by now."""
        return open(self.root / name, "rb")

    def check(self, name: str, size: int) -> None:
        """Refuse a file that is missing or has another size.

        Raises:
            ValueError: naming it.
        """
        there = self.path(name).stat().st_size
        if there != size:
            raise ValueError(f"data.root={self.root}: {name} has {there} bytes instead of {size}; copy it again")


class RemoteFiles:
    """Files of an object store, fetched into a folder when first asked for; whole or not there, whoever is killed.

    Any number of processes may share the folder: one of them fetches a file, the others wait for it; a file that is
    thrown out while it is read stays until it is closed, and one thrown out just before is fetched again.

    Args:
        root: the URL.
        folder: for the copies.
        limit: bytes of shards beyond which those are thrown out that were not read for longest.
    """

    def __init__(self, root: str, folder: Path, limit: int) -> None:
        self.root = root
        self.folder = folder
        self.limit = limit

    @staticmethod
    def of(url: str, cache: Path, limit: int) -> RemoteFiles:
        """Its folder is named after URL and manifest, so that what lies there is never of an older packing."""
        with tempfile.TemporaryDirectory() as temporary:
            manifest = _fetch(url.rstrip("/"), MANIFEST, Path(temporary) / MANIFEST).read_bytes()
        name = sha256(url.rstrip("/").encode() + b"\n" + manifest).hexdigest()[:16]
        return RemoteFiles(url.rstrip("/"), cache / name, limit)

    def path(self, name: str) -> Path:
        """A copy that stays.

        Raises:
            ValueError: it cannot be fetched.
        """
        return self._fetched(name, None)

    def open(self, name: str, size: int) -> BinaryIO:
        """A copy that may be thrown out when others need its place.

        Raises:
            ValueError: it cannot be fetched, or has another size.
        """
        while True:
            path = self._fetched(name, size)
            try:
                os.utime(path)
                return open(path, "rb")
            except FileNotFoundError:
                continue

    def _fetched(self, name: str, size: int | None) -> Path:
        from filelock import FileLock

        path = self.folder / name
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                partial = _fetch(self.root, name, path.with_name(f"part-{path.name}"))
                there = partial.stat().st_size
                if size is not None and there != size:
                    partial.unlink()
                    raise ValueError(f"{there} bytes came instead of {size}")
                partial.replace(path)
        if size is not None:
            with FileLock(self.folder / "evict.lock"):
                self._evict(keep=path)
        return path

    def _evict(self, keep: Path) -> None:
        by_age = sorted(
            (file.stat().st_mtime_ns, file.stat().st_size, file) for file in self.folder.glob("*/shard-*.bin")
        )
        total = sum(size for _, size, _ in by_age)
        for _, size, file in by_age:
            if total > self.limit and file != keep:
                file.unlink()
                total -= size


def _fetch(root: str, name: str, to: Path) -> Path:
    """A file of ``root`` as ``to``; what a killed process left there is replaced."""
    to.unlink(missing_ok=True)
    downloader = _downloader(root, os.getpid())
    try:
        downloader.download_file(f"{root}/{name}", str(to))
        if not to.is_file():
            raise FileNotFoundError("nothing came")
    except Exception as error:  # each store's client has errors of its own
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data.root={root}: {name} cannot be fetched ({type(error).__name__}: {reason}); "
            f"allowed is a folder that python -m src.pack wrote, or its URL: {SCHEMES}"
        ) from error
    return to


@lru_cache(maxsize=4)
def _downloader(root: str, process: int) -> Any:
    """One for each process, since connections do not survive a fork."""
    try:
        from litdata.streaming.downloader import get_downloader
    except ImportError as error:
        raise ValueError(
            f"data.root={root}: a URL needs litdata ({error}): pip install 'selfdistill[shards]'"
        ) from error
    return get_downloader(root, "", [])
