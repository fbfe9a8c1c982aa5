"""Splits that never change, and files of all kinds read by the real loaders."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from selfdistill.data import SPLITS, Digits, Folder, ImageFiles, TensorImages, TorchvisionSet
from selfdistill.data.sources import rank_in_class


def write(path: Path, shade: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade,) * 3).convert(mode).save(path)


def paths(root: Path, split: str, size: int = 8) -> set[str]:
    return {path.relative_to(root).as_posix() for path in Folder(root, size).split(split).paths}  # type: ignore[arg-type]


class TestDigits:
    def test_sizes_and_classes(self) -> None:
        splits = {name: Digits().split(name) for name in SPLITS}
        assert [len(images) for images in splits.values()] == [1204, 297, 296]
        for images in splits.values():
            share = torch.bincount(images.labels) / len(images)
            assert len(share) == 10
            assert (share - 0.1).abs().max() < 0.01
            assert images.images.shape[1:] == (1, 8, 8)
            assert images.images.dtype == torch.float32
            assert images.images.min() == 0
            assert images.images.max() == 1

    def test_splits_are_a_partition_of_the_original(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        parts = [Digits().split(name) for name in SPLITS]
        rows = torch.cat([torch.cat([part.images.flatten(1) * 16, part.labels[:, None]], 1) for part in parts])
        expected = torch.cat([torch.tensor(bunch.data), torch.tensor(bunch.target)[:, None]], 1)
        assert sorted(rows.int().tolist()) == sorted(expected.int().tolist())

    def test_the_rule(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        sevens = np.flatnonzero(bunch.target == 7)
        test = Digits().split("test")
        assert torch.equal(test.images[test.labels == 7][3, 0], torch.tensor(bunch.images[sevens[23]] / 16).float())

    def test_mean_and_std(self) -> None:
        train = Digits().split("train").images
        assert Digits.mean[0] == pytest.approx(train.mean().item(), abs=1e-4)
        assert Digits.std[0] == pytest.approx(train.std().item(), abs=1e-4)


class TestFolder:
    def test_named_splits(self, tmp_path: Path) -> None:
        for split, shade in (("train", 10), ("val", 20), ("test", 30)):
            for name in ("bee", "ant"):
                write(tmp_path / split / name / "deep" / "0.png", shade)
                write(tmp_path / split / name / "1.JPG", shade)
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
            images = Folder(tmp_path, 8).split(split)  # type: ignore[arg-type]
            assert paths(tmp_path, split) == {
                f"{folder}/{x}" for x in ("ant/1.JPG", "ant/deep/0.png", "bee/1.JPG", "bee/deep/0.png")
            }
            assert images.labels.tolist() == [0, 0, 1, 1]
            image, label = images[1]
            assert image.dtype == torch.uint8
            assert image.shape == (3, 4, 6)
            assert label == 0

    def test_train_and_val_alone(self, tmp_path: Path) -> None:
        """The layout of ImageNet and Imagenette: val is what is reported, so it is the test split."""
        for number in range(200):
            write(tmp_path / "train" / "a" / f"{number}.png")
        write(tmp_path / "val" / "a" / "0.png")
        assert paths(tmp_path, "test") == {"val/a/0.png"}
        assert len(paths(tmp_path, "train")) + len(paths(tmp_path, "validation")) == 200
        assert not paths(tmp_path, "train") & paths(tmp_path, "validation")
        assert 8 <= len(paths(tmp_path, "validation")) <= 36

    def test_one_folder_without_labels(self, tmp_path: Path) -> None:
        for number in range(100):
            write(tmp_path / f"{number}.png")
            write(tmp_path / "more" / f"{number}.png")
        (tmp_path / "notes.txt").write_text("no image")
        parts = [paths(tmp_path, split) for split in SPLITS]
        assert sum(len(part) for part in parts) == len(set.union(*parts)) == 200
        assert all(10 <= len(part) <= 36 for part in parts[1:])
        assert (Folder(tmp_path, 8).split("train").labels == -1).all()

    def test_the_hash_split_ignores_the_root(self, tmp_path: Path) -> None:
        for number in range(60):
            write(tmp_path / "one" / "a" / f"{number}.png")
            write(tmp_path / "two" / "a" / f"{number}.png")
        for split in SPLITS:
            assert paths(tmp_path / "one", split) == paths(tmp_path / "two", split)

    @pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGB"])
    def test_modes(self, mode: str, tmp_path: Path) -> None:
        write(tmp_path / f"a.{'png' if mode == 'P' else 'tif'}", 255, mode=mode)
        images = ImageFiles(list(tmp_path.iterdir()), torch.tensor([-1]))
        assert images[0][0].shape == (3, 4, 6)
        assert images[0][0].unique().tolist() == [255]

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"data.root: None given, no such folder"):
            Folder(None, 8).split("train")
        with pytest.raises(ValueError, match=r"data.root: .*gone given, no such folder"):
            Folder(tmp_path / "gone", 8).split("train")
        with pytest.raises(ValueError, match=r"no images in .*; allowed are .bmp, .jpeg"):
            Folder(tmp_path, 8).split("train")
        write(tmp_path / "train" / "a" / "0.png")
        write(tmp_path / "test" / "b" / "0.png")
        with pytest.raises(ValueError, match="classes that .*train has not: b"):
            Folder(tmp_path, 8).split("test")
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG no")
        with pytest.raises(ValueError, match=r"broken.png is no image of a known format; repair it, take it out"):
            ImageFiles([broken], torch.tensor([-1]))[0]


class TestTorchvision:
    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match="name='cifar' is not known; allowed: cifar10, cifar100, stl10, imagenette, imagenet"
        ):
            TorchvisionSet("cifar", tmp_path)
        for name in ("cifar10", "cifar100", "stl10", "imagenette"):
            with pytest.raises(ValueError, match=f"does not hold {name}.*data.download=true") as refusal:
                TorchvisionSet(name, tmp_path).split("train")
            assert "\n" not in str(refusal.value)

    def test_cifar(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Small files in CIFAR's own format, through torchvision's own reader."""
        generator = np.random.default_rng(0)
        written = {}
        base = tmp_path / torchvision.datasets.CIFAR10.base_folder
        base.mkdir()
        for name, count in (("train", 40), ("test", 6)):
            pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
            written[name] = pixels.reshape(count, 3, 32, 32)
            (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": [n % 2 for n in range(count)]}))
        (base / "meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
        cifar = torchvision.datasets.CIFAR10
        monkeypatch.setattr(cifar, "train_list", [["train", None]])
        monkeypatch.setattr(cifar, "test_list", [["test", None]])
        monkeypatch.setattr(cifar, "meta", {"filename": "meta", "key": "label_names", "md5": None})
        source = TorchvisionSet("cifar10", tmp_path)
        # Of each class, the tenth and the twentieth: samples 18, 19, 38 and 39.
        held_out = torch.tensor([18, 19, 38, 39])
        everything = torch.from_numpy(written["train"])
        validation, train = source.split("validation"), source.split("train")
        assert isinstance(validation, TensorImages)
        assert isinstance(train, TensorImages)
        assert torch.equal(validation.images, everything[held_out])
        assert torch.equal(train.images, everything[[n for n in range(40) if n not in held_out.tolist()]])
        assert torch.equal(source.split("test").images, torch.from_numpy(written["test"]))  # type: ignore[union-attr]

    def test_stl10(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stl = torchvision.datasets.STL10
        base = tmp_path / stl.base_folder
        base.mkdir()
        generator = np.random.default_rng(0)
        for file, count in (("train_X.bin", 20), ("unlabeled_X.bin", 15), ("test_X.bin", 3)):
            generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(base / file)
        np.ones(20, np.uint8).tofile(base / "train_y.bin")
        np.ones(3, np.uint8).tofile(base / "test_y.bin")
        monkeypatch.setattr(stl, "_check_integrity", lambda _: True)
        source = TorchvisionSet("stl10", tmp_path)
        assert source.split("train").labels.tolist() == [0] * 18 + [-1] * 15
        assert source.split("validation").labels.tolist() == [0, 0]
        assert source.split("test").labels.tolist() == [0] * 3

    def test_imagenette(self, tmp_path: Path) -> None:
        for number in range(40):
            write(tmp_path / "imagenette2-160" / "train" / "n01440764" / f"{number}.jpeg")
        write(tmp_path / "imagenette2-160" / "val" / "n01440764" / "0.jpeg")
        source = TorchvisionSet("imagenette", tmp_path)
        assert len(source.split("test")) == 1
        assert len(source.split("train")) + len(source.split("validation")) == 40
        assert source.split("train")[0][0].shape == (3, 4, 6)

    def test_imagenet(self, tmp_path: Path) -> None:
        """Folders by class, as torchvision unpacks the archives: val is the test split, and one training image in a
        hundred is for validation."""
        for number in range(400):
            for name in ("n01440764", "n01443537"):
                write(tmp_path / "train" / name / f"{name}_{number}.JPEG", size=(2, 2))
        for name in ("n01440764", "n01443537"):
            write(tmp_path / "val" / name / "ILSVRC2012_val_00000001.JPEG")
        source = TorchvisionSet("imagenet", tmp_path)
        train, validation, test = (source.split(name) for name in SPLITS)
        assert test.labels.tolist() == [0, 1]
        assert test[1][0].shape == (3, 4, 6)
        assert len(train) + len(validation) == 800
        assert 1 <= len(validation) <= 8 + 4 * 8**0.5
        assert isinstance(train, ImageFiles)
        assert isinstance(validation, ImageFiles)
        assert not set(train.paths) & set(validation.paths)

    def test_a_missing_imagenet_says_where_to_put_it(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        for root in (None, tmp_path, tmp_path / "gone"):
            with pytest.raises(ValueError, match=r"data.root=.* does not hold imagenet; .*train/ and val/") as refusal:
                TorchvisionSet("imagenet", root)
            assert "\n" not in str(refusal.value)

    def test_no_root(self) -> None:
        with pytest.raises(ValueError, match=r"data.root=None does not hold cifar10; give the folder"):
            TorchvisionSet("cifar10", None)


def test_rank_in_class() -> None:
    assert rank_in_class(torch.tensor([5, 5, 1, 5, 1])).tolist() == [0, 1, 0, 2, 1]


def test_too_few_images_for_a_split_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    said = r"data\.root: .* given, its 1 images are too few to take a (validation|test) split from, one of 10; give"
    with pytest.raises(ValueError, match=said):
        [Folder(tmp_path, 8).split(name) for name in SPLITS]
