"""A folder of images as shards: each split a data set of litdata's, the images' encoded bytes as they are.

Written so that a stop at any instant costs one shard at most: a shard is moved to its place when it is whole, then a
receipt beside it says what is in it. The same command counts the receipts and goes on behind the last of them; where
a shard ends depends on the images alone, so the result is that of an uninterrupted run, byte for byte. The manifest
comes last, and nothing is read without it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.data.images import ImageFiles
from selfdistill.data.shard_files import MANIFEST
from selfdistill.data.shard_writer import Shard, encoded_images, receipts_in, write_shard
from selfdistill.data.sources import SPLITS, Folder
from selfdistill.data.streaming import SAMPLE
from selfdistill.files import whole_file, write_text

_PLAN = "plan.json"
_LOCK = "pack.lock"
_SKIPPED = "skipped.txt"
_INDEX = "index.json"
# Lines that say how far it is, in each split, where no terminal shows a bar.
_LINES = 10

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        images: of each split.
        shards: of all splits.
        skipped: files that are no readable images; `skipped.txt` has their names.
    """

    images: dict[str, int]
    shards: int
    skipped: int


def pack(
    source: str | Path,
    output: str | Path,
    *,
    held_out: int = 10,
    max_side: int | None = None,
    shard_mb: float = 64,
    num_workers: int = 4,
) -> Packed:
    """Write the images that `Folder` finds in ``source``, with its splits and labels, as shards in ``output``.

    Called again with the same arguments it continues, or finds everything done.

    Args:
        source: folder of images.
        output: a new or empty folder, or one that an earlier call did not finish.
        held_out: as `Folder`.
        max_side: larger images are reduced to this many pixels at their longer side and become JPEG files of quality
            95; None keeps every file's bytes.
        shard_mb: 10⁶ bytes at which a shard ends.
        num_workers: threads that read and check the images.

    Raises:
        ValueError: settings out of range, a source without (readable) images, an output with other content, or no
            litdata.
    """
    for name, value, least in (("held_out", held_out, 2), ("max_side", max_side, 1), ("num_workers", num_workers, 1)):
        if not (name == "max_side" and value is None) and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value} is not allowed; it must be a whole number of at least {least}")
    if not isinstance(shard_mb, int | float) or not 0 < shard_mb <= 2000:
        raise ValueError(f"shard_mb={shard_mb} is not allowed; it must be a number above 0 and at most 2000")
    _need_litdata()
    root, target = Path(source), Path(output)
    if target.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"output={output} lies in source={source}; choose a folder outside of it")
    splits = _listed(root, held_out)
    plan = {
        "format": 1,
        "images": _digest(root, splits),
        "held_out": held_out,
        "max_side": max_side,
        "shard_mb": shard_mb,
    }
    with _claimed(target, plan):
        if not (target / MANIFEST).exists():
            for split, images in splits.items():
                _pack_split(root, target / split, images, max_side, int(shard_mb * 1e6), num_workers)
            _finish(target, plan, _class_names(root, splits))
        return _clean(target)


def _listed(root: Path, held_out: int) -> dict[str, ImageFiles]:
    folder = Folder(root, size=1, held_out=held_out)
    try:
        return {name: folder.split(name) for name in SPLITS}
    except ValueError as error:
        raise ValueError(str(error).replace("data.root", "source", 1)) from error


def _digest(root: Path, splits: dict[str, ImageFiles]) -> str:
    """Of names, sizes, labels and splits: another digest, other shards."""
    digest = sha256()
    for split, images in splits.items():
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            digest.update(f"{split}\t{path.relative_to(root)}\t{path.stat().st_size}\t{label}\n".encode())
    return digest.hexdigest()


def _class_names(root: Path, splits: dict[str, ImageFiles]) -> list[str]:
    train = root / "train" if (root / "train").is_dir() else root
    names = {
        label: path.relative_to(train).parts[0]
        for images in splits.values()
        for path, label in zip(images.paths, images.labels.tolist(), strict=True)
        if label >= 0 and path.is_relative_to(train)
    }
    return [names[label] for label in sorted(names)]


@contextmanager
def _claimed(target: Path, plan: dict[str, Any]) -> Iterator[None]:
    """This process alone writes into ``target``, which is empty or was begun with the same plan."""
    from filelock import FileLock, Timeout

    known = next((target / name for name in (MANIFEST, _PLAN) if (target / name).is_file()), None)
    begun = None if known is None else json.loads(known.read_text(encoding="utf-8"))["plan"]
    ours = {_LOCK, f"part-{_PLAN}"}
    other = target.exists() and (not target.is_dir() or {path.name for path in target.iterdir()} - ours)
    if begun is None and other:
        raise ValueError(f"output={target} exists and holds something else; choose another folder or remove it")
    if begun is not None and begun != plan:
        changed = ", ".join(
            "the images in source" if key == "images" else f"{key}={begun.get(key)}"
            for key in plan
            if begun.get(key) != plan[key]
        )
        raise ValueError(f"output={target} was begun with something else ({changed}); choose another or remove it")
    target.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target / _LOCK, timeout=0)
    try:
        with lock:
            if begun is None:
                write_text(target / _PLAN, json.dumps({"plan": plan}, indent=2) + "\n")
            try:
                yield
            finally:
                (target / _LOCK).unlink(missing_ok=True)
                if not any(target.iterdir()):
                    target.rmdir()
    except Timeout:
        raise ValueError(f"output={target}: another process writes into it; let it finish") from None


def _pack_split(root: Path, folder: Path, images: ImageFiles, max_side: int | None, limit: int, workers: int) -> None:
    """All shards of a split that have no receipt yet."""
    folder.mkdir(exist_ok=True)
    receipts = receipts_in(folder)
    done = receipts[-1]["next"] if receipts else 0
    packed = sum(len(receipt["labels"]) for receipt in receipts)
    number = len(receipts)
    labels = images.labels.tolist()
    with _progress(folder.name, done, len(labels)) as progress:
        shard = Shard()
        for at, encoded in enumerate(encoded_images(images.paths, done, max_side, workers), done):
            name = images.paths[at].relative_to(root).as_posix()
            if isinstance(encoded, bytes):
                shard.samples.append({"image": encoded, "label": labels[at], "name": name.encode()})
                shard.bytes += len(encoded)
                packed += 1
            else:
                shard.skipped.append([name, encoded])
            if shard.bytes >= limit or at + 1 == len(labels):
                if not packed:
                    _refuse(folder, shard.skipped)
                write_shard(folder, number, shard, next_image=at + 1)
                shard, number = Shard(), number + 1
            progress(at + 1)


def _refuse(folder: Path, skipped: list[list[str]]) -> None:
    """No image of the split can be read; what was made for it goes, and all of it where nothing was packed before."""
    target = folder.parent
    folder.rmdir()
    if not any(path.is_dir() for path in target.iterdir()):
        (target / _PLAN).unlink()
    name, reason = skipped[0]
    raise ValueError(f"source: no {folder.name} image of {len(skipped)} can be read; the first: {name} ({reason})")


def _finish(target: Path, plan: dict[str, Any], classes: list[str]) -> None:
    images, shards, skipped = {}, 0, []
    for split in SPLITS:
        receipts = receipts_in(target / split)
        written = [receipt for receipt in receipts if "chunk" in receipt]
        labels = [label for receipt in receipts for label in receipt["labels"]]
        with whole_file(target / split / "labels.npy") as temporary:
            np.save(temporary, np.array(labels, np.int64))
        index = {"chunks": [receipt["chunk"] for receipt in written], "config": written[0]["config"]}
        assert index["config"]["data_format"] == SAMPLE
        write_text(target / split / _INDEX, json.dumps(index))
        images[split] = len(labels)
        shards += len(written)
        skipped += [f"{name}\t{reason}\n" for receipt in receipts for name, reason in receipt["skipped"]]
    if skipped:
        write_text(target / _SKIPPED, "".join(skipped))
    manifest = {"plan": plan, "classes": classes, "images": images, "shards": shards, "skipped": len(skipped)}
    write_text(target / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _clean(target: Path) -> Packed:
    """Without receipts and plan, which the manifest replaces."""
    for split in SPLITS:
        for receipt in (target / split).glob("shard-*.json"):
            receipt.unlink()
    (target / _PLAN).unlink(missing_ok=True)
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    return Packed(manifest["images"], manifest["shards"], manifest["skipped"])


@contextmanager
def _progress(split: str, start: int, total: int) -> Iterator[Progress]:
    """A bar in a terminal, a few lines elsewhere."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as bar:
            task = bar.add_task(f"{split:10}", total=total, completed=start)
            yield lambda done: bar.update(task, completed=done)
        return

    def line(done: int) -> None:
        if done == total or done * _LINES // total > (done - 1) * _LINES // total:
            print(f"{split}: {done:,}/{total:,} images", flush=True)

    yield line


def _need_litdata() -> None:
    try:
        import litdata  # noqa: F401
    except ImportError as error:
        raise ValueError(f"shards need litdata ({error}): pip install 'selfdistill[shards]'") from error
