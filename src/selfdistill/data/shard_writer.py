"""One shard after the other: images are read and checked, then written in litdata's format with a receipt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from selfdistill.data.decode import as_rgb
from selfdistill.files import write_text

# Images that are read ahead of the shard that is written.
_AHEAD = 64
_QUALITY = 95


class Shard:
    """What becomes the next shard."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.skipped: list[list[str]] = []
        self.bytes = 0


def receipts_in(folder: Path) -> list[dict[str, Any]]:
    """Those of a split, up to the first that is missing: where packing goes on."""
    found: list[dict[str, Any]] = []
    while (receipt := folder / f"shard-{len(found):05}.json").is_file():
        found.append(json.loads(receipt.read_text(encoding="utf-8")))
    return found


def encoded_images(paths: list[Path], start: int, max_side: int | None, workers: int) -> Iterator[bytes | str]:
    """In the order of ``paths``: an image's bytes, or why it cannot be read."""

    def read(path: Path) -> bytes | str:
        return _encoded(path, max_side)

    with ThreadPoolExecutor(workers) as pool:
        for at in range(start, len(paths), _AHEAD):
            yield from pool.map(read, paths[at : at + _AHEAD])


def _encoded(path: Path, max_side: int | None) -> bytes | str:
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as image:
            image.load()
            if max_side is None or max(image.size) <= max_side:
                as_rgb(image)
                return data
            small = as_rgb(image)
            small.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
            written = BytesIO()
            small.save(written, "JPEG", quality=_QUALITY)
            return written.getvalue()
    except UnidentifiedImageError:
        return "no image of a known format"
    except OSError as error:
        return error.strerror or " ".join(str(error).split())
    except Exception as error:  # a broken file leads Pillow's readers to errors of any kind
        return " ".join(f"{type(error).__name__}: {error}".split())


def write_shard(folder: Path, number: int, shard: Shard, next_image: int) -> None:
    """Shard, then receipt: of one without a receipt nothing is believed."""
    from litdata.streaming.writer import BinaryWriter

    stem = f"shard-{number:05}"
    receipt = {"next": next_image, "skipped": shard.skipped, "labels": [s["label"] for s in shard.samples]}
    if shard.samples:
        draft = folder / "part"
        writer = BinaryWriter(str(draft), chunk_size=len(shard.samples))
        for place, sample in enumerate(shard.samples):
            writer[place] = sample
        writer.done()
        index = json.loads((draft / f"{writer.rank}.index.json").read_text(encoding="utf-8"))
        (chunk,) = index["chunks"]
        (draft / chunk["filename"]).replace(folder / f"{stem}.bin")
        shutil.rmtree(draft)
        receipt |= {"chunk": chunk | {"filename": f"{stem}.bin"}, "config": index["config"] | {"chunk_size": None}}
    write_text(folder / f"{stem}.json", json.dumps(receipt))
