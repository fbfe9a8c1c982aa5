"""Shards against the files that they were made of, and a run on them cut in the middle of an epoch."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.data import SPLITS, DataModule, Folder, ImageFiles, ResumableBatchSampler, ShardImages, Shards
from selfdistill.data.packing import pack
from selfdistill.views import Augment, CropSpec, ViewRecipe

ROOT = Path(__file__).parents[2]
KINDS = [("jpg", "RGB"), ("png", "L"), ("jpg", "CMYK"), ("png", "I;16"), ("png", "P"), ("png", "RGBA")]


def write_images(root: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4), ("test", 4)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                suffix, mode = KINDS[number % len(KINDS)]
                size = (9 + number, 8)
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if mode == "I;16" else pixels)
                image = image if mode == "I;16" else image.convert(mode)
                image.save(root / split / name / f"{number:02}.{suffix}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root)
    return root


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "out"
    pack(images, output, shard_mb=0.003, num_workers=1)
    assert len(list((output / "train").glob("*.bin"))) >= 4
    return output


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


@pytest.fixture(params=["", "local:"])
def source(request: pytest.FixtureRequest, packed: Path, tmp_path: Path) -> Shards:
    """A folder, and the same one through litdata's transport and a cache."""
    return Shards(f"{request.param}{packed}", 8, cache=tmp_path / "cache")


def equal(read: ShardImages, expected: ImageFiles) -> bool:
    pairs = [(*read[at], *expected[at]) for at in range(len(expected))]
    return len(read) == len(expected) and all(torch.equal(a, c) and torch.equal(b, d) for a, b, c, d in pairs)


def read_all(images: ShardImages) -> list[torch.Tensor]:
    return [images[at][0] for at in range(len(images))]


def test_the_same_images_and_labels_as_the_folder(source: Shards, images: Path) -> None:
    for split in SPLITS:
        read, expected = source.split(split), Folder(images, 8).split(split)
        assert torch.equal(read.labels, expected.labels)
        assert read.labels.dtype == torch.int64
        assert equal(read, expected)
        assert equal(pickle.loads(pickle.dumps(read)), expected)
        for outside in (-1, len(expected)):
            with pytest.raises(IndexError):
                read[outside]


def test_a_packing_without_labels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    pack(tmp_path / "in", tmp_path / "out", held_out=5)
    source = Shards(tmp_path / "out", 4)
    recipe = ViewRecipe([CropSpec(4, Augment(), count=2)])
    module = DataModule(source, recipe, batch_size=4)
    module.setup("fit")
    assert not module.labelled
    assert next(iter(module.train_dataloader())).labels is None


class TestWhatIsBroken:
    def told(self, source: Shards, at: int | None = None) -> str:
        with pytest.raises(ValueError, match=r"\S") as caught:
            source.split("train") if at is None else source.split("train")[at]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_finished_shards(self, images: Path, copied: Path) -> None:
        assert "data.root: None given, no such folder" in self.told(Shards(None, 8))
        assert "python -m src.pack source=" in self.told(Shards(images, 8))
        (copied / "shards.json").unlink()
        assert "no finished shards" in self.told(Shards(copied, 8))

    def test_a_shard_cut_short_or_missing_is_told_before_training(self, copied: Path) -> None:
        shard = copied / "train" / "shard-00001.bin"
        size = shard.stat().st_size
        shard.write_bytes(shard.read_bytes()[:-100])
        assert f"train/shard-00001.bin has {size - 100} bytes instead of {size}" in self.told(Shards(copied, 8))
        shard.unlink()
        assert "train/shard-00001.bin is missing" in self.told(Shards(copied, 8))

    @pytest.mark.parametrize("left", [0, 6, 40, 200, -3])
    def test_a_shard_cut_short_while_training(self, left: int, copied: Path) -> None:
        images = Shards(copied, 8).split("train")
        last = int(images.ends[1]) - 1
        shard = copied / "train" / "shard-00001.bin"
        shard.write_bytes(shard.read_bytes()[:left])
        with pytest.raises(ValueError, match=r"train/shard-00001.bin, sample \d+, cannot be read") as caught:
            images[last]
        assert "\n" not in str(caught.value)
        assert images[0][0].shape[0] == 3

    @pytest.mark.parametrize("kept", [0, 0.5])
    def test_a_broken_image(self, kept: float, images: Path, copied: Path) -> None:
        first = int(Shards(copied, 8).split("train").ends[0])
        path = Folder(images, 8).split("train").paths[first + 2]
        encoded, shard = path.read_bytes(), copied / "train" / "shard-00001.bin"
        broken = encoded[: int(kept * len(encoded))].ljust(len(encoded), b"\0")
        assert encoded in shard.read_bytes()
        shard.write_bytes(shard.read_bytes().replace(encoded, broken))
        told = self.told(Shards(copied, 8), first + 2)
        assert f"train/shard-00001.bin, sample 2, (train/{path.parent.name}/{path.name}) is no " in told
        assert Shards(copied, 8).split("train")[first + 1][0].shape[0] == 3

    def test_shards_of_another_kind(self, copied: Path) -> None:
        index = copied / "train" / "index.json"
        index.write_text(index.read_text(encoding="utf-8").replace('["bytes", "int", "bytes"]', '["jpeg", "int"]'))
        assert "is not of python -m src.pack" in self.told(Shards(copied, 8))

    def test_urls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told = self.told(Shards(f"local:{tmp_path}/gone", 8, cache=tmp_path / "cache"))
        assert "shards.json cannot be fetched" in told
        assert "s3://" in told
        monkeypatch.setitem(sys.modules, "litdata.streaming.downloader", None)
        assert "pip install 'selfdistill[shards]'" in self.told(Shards("s3://bucket/x", 8, cache=tmp_path / "cache"))

    def test_a_shard_that_comes_with_another_size(self, copied: Path, tmp_path: Path) -> None:
        shard = copied / "train" / "shard-00000.bin"
        shard.write_bytes(shard.read_bytes()[:-1])
        told = self.told(Shards(f"local:{copied}", 8, cache=tmp_path / "cache"), 0)
        assert "shard-00000.bin, sample 0, cannot be read" in told
        assert not list((tmp_path / "cache").rglob("*.bin"))

    def test_settings(self) -> None:
        for settings, says in (({"window": 0}, "data.source.window=0"), ({"cache_gb": 0}, "data.source.cache_gb=0")):
            with pytest.raises(ValueError, match=says):
                Shards(None, 8, **settings)  # type: ignore[arg-type]


class TestTheCache:
    def test_is_bounded_and_what_was_not_read_for_longest_goes(self, packed: Path, tmp_path: Path) -> None:
        sizes = [path.stat().st_size for path in (packed / "train").glob("*.bin")]
        limit = 2 * max(sizes)
        source = Shards(f"local:{packed}", 8, cache=tmp_path, cache_gb=limit / 1e9)
        images = source.split("train")
        expected = read_all(Shards(packed, 8).split("train"))
        order = np.random.default_rng(0).permutation(len(images)).tolist()
        for at in order:
            assert torch.equal(images[at][0], expected[at])
            kept = list(tmp_path.rglob("*.bin"))
            assert sum(path.stat().st_size for path in kept) <= limit
        shard = int(np.searchsorted(images.ends, order[-1], "right"))
        assert f"shard-{shard:05}.bin" in {path.name for path in kept}

    def test_reading_keeps_a_shard(self, packed: Path, tmp_path: Path) -> None:
        limit = 2 * max(path.stat().st_size for path in (packed / "train").glob("*.bin"))
        images = Shards(f"local:{packed}", 8, cache=tmp_path, cache_gb=limit / 1e9).split("train")
        starts = (images.ends - images.counts).tolist()
        for shard in (0, 1):
            images[starts[shard]]
            os.utime(next(tmp_path.rglob(f"shard-0000{shard}.bin")), ns=(shard, shard))
        images[starts[0]]
        images[starts[2]]
        assert {path.name for path in tmp_path.rglob("*.bin")} >= {"shard-00000.bin", "shard-00002.bin"}
        assert not list(tmp_path.rglob("shard-00001.bin"))

    def test_a_shard_thrown_out_just_before_it_is_opened_is_fetched_again(
        self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = Shards(f"local:{packed}", 8, cache=tmp_path).split("train")
        calls: list[Path] = []

        def utime(path: Path) -> None:
            calls.append(path)
            if len(calls) == 1:
                path.unlink()
                raise FileNotFoundError(path)

        monkeypatch.setattr(os, "utime", utime)
        assert torch.equal(images[0][0], Shards(packed, 8).split("train")[0][0])
        assert len(calls) >= 2

    def test_another_packing_is_not_taken_for_this_one(self, images: Path, copied: Path, tmp_path: Path) -> None:
        source = Shards(f"local:{copied}", 8, cache=tmp_path / "cache")
        assert len(source.split("validation")) == 8
        shutil.rmtree(copied)
        pack(images / "train", copied, shard_mb=0.003)
        expected = Folder(images / "train", 8).split("validation")
        assert len(expected) != 8
        assert equal(source.split("validation"), expected)

    def test_is_shared_by_processes_that_throw_out_each_others_shards(self, packed: Path, tmp_path: Path) -> None:
        limit = 1.5 * max(path.stat().st_size for path in (packed / "train").glob("*.bin"))
        shards = Shards(f"local:{packed}", 8, cache=tmp_path, cache_gb=limit / 1e9).split("train")
        expected = read_all(Shards(packed, 8).split("train"))
        with get_context("fork").Pool(2) as pool:
            for found in pool.map(read_all, [shards] * 4, chunksize=1):
                assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            # at the end of the block they would be terminated, which one with another's SIGTERM handler outlives
            pool.close()
            pool.join()
        assert not list(tmp_path.rglob("part-*"))


class TestTheOrder:
    COUNTS = (40, 10, 70, 25, 55, 60, 30, 10) * 6

    def shards(self, window: int | None) -> ShardImages:
        counts = list(self.COUNTS)
        return ShardImages(None, [], counts, torch.zeros(sum(counts)), window)  # type: ignore[arg-type]

    @pytest.mark.parametrize("window", [1, 4, 12])
    def test_few_shards_are_in_use_at_a_time(self, window: int) -> None:
        """Each sample once; a shard's first and last use are less than window + 1 shards apart."""
        images = self.shards(window)
        order = images.permutation(np.random.default_rng(0))
        assert sorted(order) == list(range(sum(self.COUNTS)))
        shard = np.searchsorted(images.ends, order, "right")
        first = {int(n): int(np.flatnonzero(shard == n)[0]) for n in set(shard.tolist())}
        last = {n: int(np.flatnonzero(shard == n)[-1]) for n in first}
        in_use = [sum(first[n] <= at <= last[n] for n in first) for at in range(len(order))]
        assert max(in_use) <= window + 1
        if window > 1:
            assert np.mean(in_use) > window / 2
            neighbours = np.mean(shard[1:] == shard[:-1])
            assert neighbours < 2 / window

    def test_shards_come_in_another_order_each_epoch(self) -> None:
        orders = [self.shards(4).permutation(np.random.default_rng((0, epoch))) for epoch in range(2)]
        assert not np.array_equal(*orders)

    @pytest.mark.parametrize("window", [None, 48, 100])
    def test_a_window_for_all_is_the_plain_permutation(self, window: int | None) -> None:
        got = self.shards(window).permutation(np.random.default_rng(5))
        assert np.array_equal(got, np.random.default_rng(5).permutation(sum(self.COUNTS)))

    def test_the_sampler_takes_it_and_starts_anywhere(self) -> None:
        images = self.shards(4)

        def sampler() -> ResumableBatchSampler:
            return ResumableBatchSampler(len(images), 16, seed=3, permutation=images.permutation)

        whole, rest = sampler(), sampler()
        for order in (whole, rest):
            order.set_epoch(7)
        rest.start = 5
        expected = images.permutation(np.random.default_rng((3, 7)))
        assert [index for batch in whole for index in batch] == expected[: len(whole) * 16].tolist()
        assert list(rest) == list(whole)[5:]

    def test_windows_by_default(self, packed: Path) -> None:
        assert Shards(packed, 8).window is None
        assert Shards("s3://bucket/images", 8).window == 16
        assert Shards("s3://bucket/images", 8, window=3).window == 3


def test_a_folder_needs_no_litdata(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "litdata"] + ["litdata"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert Shards(packed, 8).split("train")[0][0].shape[0] == 3


def test_training_cut_in_the_middle_of_an_epoch_goes_on_as_if_it_were_not(packed: Path, tmp_path: Path) -> None:
    """The command, workers and all: 5 steps an epoch, 2 epochs, continued after step 7."""

    def train(folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
        given = [
            "data=shards", f"data.root='{packed}'", "data.image.size=8", "data.batch_size=8",
            "data.num_workers=2", "backbone=small_cnn", "trainer.accelerator=cpu", "trainer.max_epochs=2",
            "evaluation.draws=2", "evaluation.k=3", f"hydra.run.dir='{folder}'",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "src.train", *given, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["global_step"] == 10
        return state["state_dict"]

    saves = f"dirpath: '{tmp_path}', filename: 'at-{{step}}', every_n_train_steps: 7, save_top_k: -1"
    whole = train(
        tmp_path / "whole", f"+callbacks.middle={{_target_: lightning.pytorch.callbacks.ModelCheckpoint, {saves}}}"
    )
    rest = train(tmp_path / "rest", f"ckpt_path='{tmp_path}/at-step=7.ckpt'")
    assert whole.keys() == rest.keys()
    assert all(torch.equal(value, rest[name]) for name, value in whole.items())
