"""Files of every kind, broken ones among them: read, skipped and counted, or refused by name."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.data import DataModule, Folder
from selfdistill.data.decode import UnreadableImageError, decoded
from selfdistill.data.packing import pack
from selfdistill.data.streaming import Shards
from selfdistill.views import Augment, CropSpec, ViewRecipe

RANDOM = np.random.default_rng(0)
BROKEN = ("a/03.jpg", "b/05.jpg")


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for label in "ab":
        (root / label).mkdir()
        for count in range(12):
            Image.fromarray(noise(20, 24, 3)).save(root / label / f"{count:02}.jpg")
    whole = (root / BROKEN[0]).read_bytes()
    (root / BROKEN[0]).write_bytes(whole[: len(whole) // 3])
    (root / BROKEN[1]).write_bytes(b"no image")
    Image.fromarray(noise(1, 1, 3)).save(root / "a" / "one.png")
    Image.fromarray(noise(9, 9, 4), "CMYK").save(root / "b" / "cmyk.jpg")
    return root


def module(root: Path, on_error: str = "skip", workers: int = 0, split: str = "folder") -> DataModule:
    recipe = ViewRecipe(
        [CropSpec(16, Augment(crop_scale=(0.3, 1.0), flip=0.5, blur=1.0, jitter=0.5, hue=0.1), count=2)]
    )
    source = Shards(root, 16) if split == "shards" else Folder(root, 16)
    return DataModule(source, recipe, batch_size=11, num_workers=workers, drop_last=False, on_error=on_error)  # type: ignore[arg-type]


def image_of(pixels: np.ndarray, suffix: str = "PNG") -> BytesIO:
    file = BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    file.seek(0)
    return file


class TestDecoded:
    def test_16_bits_keep_their_upper_ones(self) -> None:
        deep = np.array([[0, 257, 32896], [65535, 128, 129]], np.uint16)
        expected = torch.tensor([[0, 1, 128], [255, 0, 1]], dtype=torch.uint8)
        assert torch.equal(decoded(image_of(deep)), expected.expand(3, 2, 3))

    def test_gray_is_repeated(self) -> None:
        gray = noise(4, 5)
        assert torch.equal(decoded(image_of(gray)), torch.from_numpy(gray).expand(3, 4, 5))

    def test_a_palette_with_transparency_keeps_its_colours(self) -> None:
        colours = np.zeros((4, 4, 3), np.uint8)
        colours[:2] = (200, 10, 60)
        image, file = Image.fromarray(colours).quantize(2), BytesIO()
        image.save(file, "PNG", transparency=bytes([255, 128]))
        file.seek(0)
        assert torch.equal(decoded(file), torch.from_numpy(colours).permute(2, 0, 1))

    @pytest.mark.parametrize(("kept", "said"), [(0, "no image of a known format"), (0.5, "no readable image")])
    def test_a_broken_one_is_refused(self, kept: float, said: str) -> None:
        encoded = image_of(noise(30, 30, 3), "JPEG").getvalue()
        with pytest.raises(UnreadableImageError, match=said):
            decoded(BytesIO(encoded[: int(kept * len(encoded))]))


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_stands_in_and_the_broken_are_counted_once(workers: int, folder: Path) -> None:
    def epoch(data: DataModule) -> list[torch.Tensor]:
        data.setup()
        return [
            torch.cat([*views.crops, views.labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16)])
            for views in data.train_dataloader()
        ]

    data = module(folder, workers=workers)
    first = epoch(data)
    train = {str(path) for path in Folder(folder, 16).split("train").paths}
    broken = sorted(name for name in (str(folder / b) for b in BROKEN) if name in train)
    assert broken
    assert sorted(data.unreadable) == broken
    again = epoch(data)
    assert len(data.unreadable) == len(broken)
    for one, other, alone in zip(first, again, epoch(module(folder)), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, alone)


def test_what_stands_in_brings_its_own_label_and_evaluation_has_as_many(folder: Path) -> None:
    data = module(folder)
    data.setup()
    for split in ("train", "validation", "test"):
        images = Folder(folder, 16).split(split)  # type: ignore[arg-type]
        pairs = [pair for batch in data.evaluation_loader(split) for pair in zip(*batch, strict=True)]  # type: ignore[arg-type]
        assert len(pairs) == len(images)
        for index, (pixels, label) in enumerate(pairs):
            at = index
            while str(images.paths[at].relative_to(folder)) in BROKEN:
                at = (at + 1) % len(images)
            assert label == images.labels[at]
            assert torch.equal(pixels, data.evaluation_loader(split).dataset.__getitems__([at])[0][0])  # type: ignore[arg-type,attr-defined]


def test_raise_names_the_file(folder: Path) -> None:
    data = module(folder, "raise")
    with pytest.raises(
        UnreadableImageError, match=r"is no .*image.*; repair it, take it out, or set data.on_error=skip"
    ):
        list(data.train_dataloader())
    assert data.unreadable == []


def test_a_folder_of_nothing_but_broken_files_is_never_trained_on(tmp_path: Path) -> None:
    for count in range(40):
        (tmp_path / f"{count}.jpg").write_bytes(b"no image")
    data = module(tmp_path)
    with pytest.raises(
        ValueError, match="16 images in a row cannot be read, which data.on_error=skip does not bear; .*jpg"
    ):
        next(iter(data.train_dataloader()))


def test_shards_are_treated_alike(folder: Path, tmp_path: Path) -> None:
    done = pack(folder, tmp_path / "shards", shard_mb=0.004)
    assert done.skipped == len(BROKEN)
    shard = tmp_path / "shards" / "train" / "shard-00000.bin"
    data = module(tmp_path / "shards", split="shards")
    data.setup()
    content = bytearray(shard.read_bytes())
    at = content.index(b"\xff\xd8\xff")
    content[at : at + 200] = bytes(200)
    shard.write_bytes(content)
    list(data.train_dataloader())
    assert len(data.unreadable) == 1
    assert "train/shard-00000.bin, sample " in data.unreadable[0]


def test_an_unknown_rule_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="data.on_error='ignore' is not allowed; it must be raise or skip"):
        module(folder, "ignore")
