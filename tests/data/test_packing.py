"""Packing: the originals' bytes, the folder's splits and labels, and the same result however often it is cut short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from litdata import StreamingDataset
from PIL import Image

from selfdistill.data import SPLITS, Folder
from selfdistill.data.packing import Packed, pack

ROOT = Path(__file__).parents[2]
COUNT = {"train": 14, "val": 3, "test": 4}
SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}


def picture(path: Path, seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    if mode == "I;16":
        Image.fromarray(generator.integers(0, 2**16, size[::-1], dtype=np.uint16)).save(path)
    else:
        pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)


def labelled(root: Path) -> Path:
    """Two classes, files of all kinds, and two files among them that are no images."""
    kinds = [("jpg", "RGB"), ("png", "L"), ("jpg", "CMYK"), ("png", "I;16"), ("png", "P"), ("tif", "RGB")]
    for folder, count in COUNT.items():
        for name in ("ant", "bee"):
            for number in range(count):
                suffix, mode = kinds[number % len(kinds)]
                picture(root / folder / name / f"{number:02}.{suffix}", number + 100 * len(name + folder), mode=mode)
    whole = root / "train" / "ant" / "00.jpg"
    (root / "train" / "ant" / "00cut.jpg").write_bytes(whole.read_bytes()[:-60])
    (root / "train" / "bee" / "no.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("images"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SMALL = {"shard_mb": 0.002, "num_workers": 2}


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted result."""
    output = tmp_path_factory.mktemp("packed") / "out"
    pack(images, output, **SMALL)
    return output


def test_litdata_reads_what_the_folder_has(images: Path, packed: Path) -> None:
    """Its own reader, sample by sample: the files' bytes, labels and names, in each split, without the broken ones."""
    for split in SPLITS:
        source = Folder(images, 8).split(split)
        good = [at for at, path in enumerate(source.paths) if path.name not in ("00cut.jpg", "no.png")]
        read = StreamingDataset(str(packed / split))
        assert len(read) == len(good)
        for place, at in enumerate(good):
            assert read[place] == {
                "image": source.paths[at].read_bytes(),
                "label": int(source.labels[at]),
                "name": source.paths[at].relative_to(images).as_posix().encode(),
            }
    assert len(list((packed / "train").glob("*.bin"))) > 3


def test_what_is_left_and_said(images: Path, packed: Path) -> None:
    manifest = json.loads((packed / "shards.json").read_text(encoding="utf-8"))
    assert manifest["classes"] == ["ant", "bee"]
    assert manifest["images"] == {SPLIT_OF[folder]: 2 * count for folder, count in COUNT.items()}
    assert manifest["skipped"] == 2
    assert {path.name for path in packed.iterdir()} == {"shards.json", "skipped.txt", *SPLITS}
    for split in SPLITS:
        left = {path.name for path in (packed / split).iterdir() if path.suffix != ".bin"}
        assert left == {"index.json", "labels.npy"}
    skipped = (packed / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in skipped] == ["train/ant/00cut.jpg", "train/bee/no.png"]
    assert all(str(images) not in content.decode("latin-1") for content in files(packed).values())


def test_a_folder_without_labels(tmp_path: Path) -> None:
    for number in range(60):
        picture(tmp_path / "in" / f"{number}.png", number, size=(4, 4))
    done = pack(tmp_path / "in", tmp_path / "out", held_out=6)
    assert done == Packed(done.images, shards=3, skipped=0)
    for split in SPLITS:
        labels = np.load(tmp_path / "out" / split / "labels.npy")
        assert labels.tolist() == [-1] * len(Folder(tmp_path / "in", 8, 6).split(split))
    assert json.loads((tmp_path / "out" / "shards.json").read_text(encoding="utf-8"))["classes"] == []


def test_larger_images_are_reduced(images: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        picture(tmp_path / "in" / split / "a" / "wide.png", 0, size=(64, 16))
        picture(tmp_path / "in" / split / "a" / "small.png", 1, size=(20, 16))
    pack(tmp_path / "in", tmp_path / "out", max_side=32)
    small, wide = (StreamingDataset(str(tmp_path / "out" / "train"))[place]["image"] for place in range(2))
    assert small == (tmp_path / "in" / "train" / "a" / "small.png").read_bytes()
    (tmp_path / "wide.jpg").write_bytes(wide)
    with Image.open(tmp_path / "wide.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 8))


@pytest.mark.parametrize("stops", [(0, 3, 9), (5, 5, 1), (1, 1, 2, 2, 2, 3)])
def test_cut_short_anywhere_the_result_is_the_same(
    stops: tuple[int, ...], images: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call ends after so many moves of a file to its place, the next one continues."""
    output = tmp_path / "out"
    original = Path.replace
    for stop in stops:
        left = [stop]

        def replace(self: Path, target: Path, left: list[int] = left) -> Path:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return original(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                pack(images, output, **SMALL)
        assert not (output / "shards.json").exists()
    pack(images, output, **SMALL)
    assert files(output) == files(packed)


def test_killed_the_result_is_the_same(images: Path, packed: Path, tmp_path: Path) -> None:
    """Ended without a chance to clean up: in the middle of writing a shard, and between a shard and its receipt."""
    output = tmp_path / "out"
    for where in ("shard", "receipt"):
        code = f"""
import os, sys
from pathlib import Path
from selfdistill.data import shard_writer
from selfdistill.data.packing import pack
write, text, number = Path.replace, shard_writer.write_text, [0]
def replace(self, target):
    if self.suffix == ".bin" and (number.append(0) or len(number) > 3) and {where!r} == "shard":
        Path(target).parent.joinpath("part", "more").write_bytes(b"half")
        os._exit(9)
    return write(self, target)
def receipt(path, content):
    if len(number) > 3 and {where!r} == "receipt":
        os._exit(9)
    text(path, content)
Path.replace, shard_writer.write_text = replace, receipt
pack(sys.argv[1], sys.argv[2], shard_mb=0.002, num_workers=2)
"""
        done = subprocess.run([sys.executable, "-c", code, images, output], capture_output=True, check=False)
        assert done.returncode == 9, done.stderr
        assert not (output / "shards.json").exists()
        assert (output / "pack.lock").exists()
    pack(images, output, **SMALL)
    assert files(output) == files(packed)


def test_done_is_done(images: Path, packed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in packed.rglob("*") if path.is_file()}
    assert pack(images, packed, **SMALL).skipped == 2
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*") if path.is_file()} == before


def refused(*arguments: Path, **settings: object) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        pack(*arguments, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestRefusals:
    def test_settings(self, images: Path, tmp_path: Path) -> None:
        assert "max_side=0 is not allowed" in refused(images, tmp_path / "x", max_side=0)
        assert "held_out=1 is not allowed" in refused(images, tmp_path / "x", held_out=1)
        assert "num_workers=None is not allowed" in refused(images, tmp_path / "x", num_workers=None)
        assert "shard_mb=0 is not allowed" in refused(images, tmp_path / "x", shard_mb=0)
        assert "shard_mb=big is not allowed" in refused(images, tmp_path / "x", shard_mb="big")
        assert not list(tmp_path.iterdir())

    def test_sources(self, images: Path, tmp_path: Path) -> None:
        assert f"source: {tmp_path / 'gone'} given, no such folder" in refused(tmp_path / "gone", tmp_path / "x")
        (tmp_path / "empty").mkdir()
        assert "no images in" in refused(tmp_path / "empty", tmp_path / "x")
        assert "lies in source" in refused(images, images / "shards")
        for split in ("train", "val", "test"):
            (tmp_path / "broken" / split).mkdir(parents=True)
            (tmp_path / "broken" / split / "a.png").write_bytes(b"no image")
        told = "source: no train image of 1 can be read; the first: train/a.png (no image of a known format)"
        assert refused(tmp_path / "broken", tmp_path / "x") == told
        assert not (tmp_path / "x").exists()

    def test_outputs(self, images: Path, packed: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        assert "holds something else" in refused(images, tmp_path)
        assert "holds something else" in refused(images, tmp_path / "notes.txt")
        assert "(shard_mb=0.002)" in refused(images, packed, num_workers=2)
        assert "(max_side=None)" in refused(images, packed, max_side=8, **SMALL)
        picture(tmp_path / "other" / "a.png", 0)
        for number in range(60):
            picture(tmp_path / "other" / f"{number}.png", number)
        assert "(the images in source)" in refused(tmp_path / "other", packed, **SMALL)

    def test_two_at_once(self, images: Path, packed: Path) -> None:
        told: list[str] = []
        with FileLock(packed / "pack.lock"):
            thread = threading.Thread(target=lambda: told.append(refused(images, packed, **SMALL)))
            thread.start()
            thread.join()
        (packed / "pack.lock").unlink()
        assert "another process writes into it" in told[0]

    def test_without_litdata(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "litdata", None)
        assert "pip install 'selfdistill[shards]'" in refused(images, tmp_path / "x")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "src.pack", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(images: Path, packed: Path, tmp_path: Path) -> None:
    given = [f"source='{images}'", f"output='{tmp_path}/out'", "shard_mb=0.002", "num_workers=2"]
    done = command(*given)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == files(packed)
    lines = done.stdout.splitlines()
    assert "train: 30/30 images" in lines
    assert len(lines) <= 31
    assert "train 28, validation 6, test 8 images in" in lines[-1]
    assert "2 unreadable files skipped, named in skipped.txt" in lines[-1]

    refusal = command(*given, "max_side=4")
    assert refusal.returncode == 2
    assert refusal.stderr.startswith("error: output=")
    assert len(refusal.stderr.strip().splitlines()) == 1, refusal.stderr
