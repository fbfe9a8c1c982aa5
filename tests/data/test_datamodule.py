"""The data module: loaders of views and of plain images, engines, refusals, and every file in conf/data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from trainers import bare_trainer

from selfdistill.data import DataModule, Digits, Folder, TensorImages, datamodule
from selfdistill.views import Augment, CropSpec, RawBatch, ViewRecipe, Views, named_recipe
from selfdistill.views.masks import BlockMask

CONF = Path(__file__).parents[2] / "conf"
PLAIN = ViewRecipe([CropSpec(8, Augment(rotate=10, noise=0.1), count=2)])


def digits(recipe: ViewRecipe = PLAIN, **settings: Any) -> DataModule:
    return DataModule(Digits(), recipe, **({"batch_size": 256} | settings))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = torch.randint(0, 256, (12 + number, 20, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def train_views(module: DataModule) -> list[Views]:
    """The batches as a Trainer's step would get them."""
    return [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]


def test_facts() -> None:
    module = digits()
    module.setup()
    assert (module.num_train, module.image_channels, module.image_size) == (1204, 1, 8)
    assert module.labelled
    assert module.engine == "batched"


def test_training_batches() -> None:
    module = digits(seed=5)
    raw = next(iter(module.train_dataloader()))
    assert isinstance(raw, RawBatch)
    train = Digits().split("train")
    assert torch.equal(raw.images, train.images[raw.index])
    views = train_views(module)
    assert len(views) == 1204 // 256
    for batch in views:
        assert [tuple(crop.shape) for crop in batch.crops] == [(256, 1, 8, 8)] * 2
        assert torch.equal(batch.labels, train.labels[batch.index])
    assert len(train_views(digits(drop_last=False))) == 5


def test_seed_and_only_the_seed() -> None:
    one, same, other = (train_views(digits(seed=seed))[0] for seed in (0, 0, 1))
    assert torch.equal(one.crops[0], same.crops[0])
    assert torch.equal(one.index, same.index)
    assert not torch.equal(one.index, other.index)
    assert not torch.equal(one.crops[0], one.crops[1])


def test_views_ignore_the_batch_size() -> None:
    by_sample: dict[int, Tensor] = {}
    for size in (64, 172):
        for batch in train_views(digits(batch_size=size, drop_last=False)):
            for sample, view in zip(batch.index.tolist(), batch.crops[1], strict=True):
                torch.testing.assert_close(by_sample.setdefault(sample, view), view, atol=1e-5, rtol=0)
    assert len(by_sample) == 1204


def test_both_engines_and_any_number_of_workers_draw_the_same_masks() -> None:
    crops = [CropSpec(8, Augment(), count=2), CropSpec(4, Augment(), roles=["student"])]
    first = []
    for engine, workers in (("batched", 0), ("cpu", 0), ("batched", 2)):
        recipe = ViewRecipe(crops, engine=engine, masks=BlockMask((4, 4)))
        module = digits(recipe, num_workers=workers, seed=3)
        first.append(module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0))
    for views in first:
        assert set(views.masks) == {"mask", "masked", "masked_weight"}
        assert views.masks["mask"].shape == (2, 256, 16)
        for name, tensor in views.masks.items():
            assert torch.equal(tensor, first[0].masks[name]), name


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_evaluation_loader(split: Any) -> None:
    expected = Digits().split(split)
    batches = list(digits(eval_batch_size=100).evaluation_loader(split))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(labels, expected.labels)
    torch.testing.assert_close(images, (expected.images - Digits.mean[0]) / Digits.std[0])


def test_images_without_label_are_not_evaluated() -> None:
    class Half(Digits):
        def split(self, name: Any) -> TensorImages:
            images = super().split(name)
            return TensorImages(images.images, torch.where(images.labels < 5, images.labels, -1))

    labels = torch.cat([labels for _, labels in DataModule(Half(), PLAIN, batch_size=8).evaluation_loader("test")])
    assert set(labels.tolist()) == set(range(5))


def test_folder_end_to_end(folder: Path) -> None:
    module = DataModule(Folder(folder, 16), named_recipe("byol", 16), batch_size=4, eval_batch_size=5)
    module.setup()
    assert module.engine == "cpu"
    assert module.num_train == 6
    (views,) = train_views(module)
    assert [tuple(crop.shape) for crop in views.crops] == [(4, 3, 16, 16)] * 2
    images, labels = (torch.cat(parts) for parts in zip(*module.val_dataloader(), strict=True))
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_unlabelled_images_train_without_validation(tmp_path: Path) -> None:
    for number in range(30):
        Image.new("RGB", (9, 9), (number,) * 3).save(tmp_path / f"{number}.png")
    module = DataModule(Folder(tmp_path, 8), named_recipe("byol", 8), batch_size=8)
    assert not module.labelled
    assert module.val_dataloader() == []
    assert train_views(module)[0].labels is None
    with pytest.raises(ValueError, match="the train images have no labels"):
        module.evaluation_loader("train")
    seen = Count()
    bare_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0).fit(seen, module)
    assert seen.steps == module.num_train // 8


class Count(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.steps = self.validated = 0

    def training_step(self, views: Views, batch_idx: int) -> Tensor:
        assert isinstance(views, Views)
        self.steps += 1
        return self.scale * views.crops[0].mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated += len(batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_under_a_trainer(tmp_path: Path) -> None:
    module = Count()
    bare_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(module, digits())
    assert (module.steps, module.validated) == (4, 297)


def test_refusals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"data.batch_size=0 is not allowed; it must be at least 1"):
        digits(batch_size=0)
    with pytest.raises(ValueError, match=r"data.num_workers=-1 is not allowed"):
        digits(num_workers=-1)
    with pytest.raises(
        ValueError, match=r"batch_size: 1205 given, the training set has 1204 images; give at most 1204"
    ):
        digits(batch_size=1205).setup()
    with pytest.raises(ValueError, match="the images have 1 channel"):
        digits(named_recipe("byol", 8)).setup()
    with pytest.raises(ValueError, match=r"views.engine=batched needs images of one size"):
        DataModule(Folder(folder, 8), ViewRecipe(PLAIN.crops, engine="batched"), batch_size=2).setup()
    with pytest.raises(ValueError, match="split='val' is not known; allowed: train, validation, test"):
        digits().evaluation_loader("val")  # type: ignore[arg-type]
    monkeypatch.setattr(datamodule, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="1204 images, 301 for each of 4 processes; give at most 301"):
        digits(batch_size=302).train_dataloader()


@pytest.mark.parametrize("path", sorted((CONF / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs(path: Path, tmp_path: Path) -> None:
    config = OmegaConf.create({"data": OmegaConf.load(path)})
    if "root" in config.data:
        config.data.root = str(tmp_path)
        for part in ("train", "val"):
            (tmp_path / part).mkdir()
    OmegaConf.resolve(config)
    assert {"classes", "channels", "size", "local_size", "patch", "small_stem"} == set(config.data.image)
    settings = {key: value for key, value in config.data.items() if key not in ("image", "root", "download")}
    module = instantiate(settings, recipe=PLAIN, seed=0)
    assert isinstance(module, DataModule)
    assert module.recipe is PLAIN
    assert (module.image_channels, module.image_size) == (config.data.image.channels, config.data.image.size)
    assert config.data.image.size % config.data.image.patch == 0
    assert config.data.image.local_size % config.data.image.patch == 0


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("auto", "whole batches at once, on the device (the images are in memory, of one size)"),
        ("cpu", "one by one, as they are loaded (views.engine=cpu)"),
    ],
)
def test_the_engine_is_told_with_its_reason(engine: str, said: str) -> None:
    recipe = ViewRecipe([CropSpec(8, Augment(), count=2)], engine=engine)
    datamodule = DataModule(Digits(), recipe, batch_size=64)
    datamodule.setup("fit")
    assert datamodule.engine_choice == said


def test_waiting_for_data_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only loading moves: one second a batch, none while the batches are used."""
    now = [0.0]
    monkeypatch.setattr("selfdistill.data.sampler.time.perf_counter", lambda: now[0])
    datamodule = DataModule(Digits(), ViewRecipe([CropSpec(8, Augment(), count=2)]), batch_size=200)
    datamodule.setup("fit")
    assert datamodule.seconds_waited == 0
    loader = datamodule.train_dataloader()
    load = loader.dataset.__class__.__getitem__

    def slow(self: object, indices: object) -> object:
        now[0] += 1
        return load(self, indices)

    monkeypatch.setattr(loader.dataset.__class__, "__getitem__", slow)
    for _ in loader:
        now[0] += 100
    assert datamodule.seconds_waited == len(loader)
