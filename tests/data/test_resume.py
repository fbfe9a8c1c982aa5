"""A resumed run sees exactly the batches that the uninterrupted one sees, wherever it was cut.

Real Trainers on a tiny module that writes down the samples of every training step.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from trainers import bare_trainer

from selfdistill.data import DataModule, ResumableLoader, TensorImages
from selfdistill.views import Augment, CropSpec, ViewLoader, ViewRecipe

SAMPLES, BATCH, EPOCHS = 11, 2, 3
PER_EPOCH = SAMPLES // BATCH


class TinySource:
    channels, size, mean, std = 1, 4, (0.0,), (1.0,)

    def split(self, name: str) -> TensorImages:
        return TensorImages(
            torch.rand(SAMPLES, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(SAMPLES)
        )


class Recorder(L.LightningModule):
    """Keeps (epoch, sample indices, pixels of the first view) of every training step."""

    def __init__(self, stop_in: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 1)
        self.seen: list[tuple[int, list[int], list[float]]] = []
        self.stop_in = stop_in

    def training_step(self, views: Any, batch_idx: int) -> torch.Tensor:
        if self.stop_in == len(self.seen):
            raise RuntimeError("cut short")
        self.seen.append((self.current_epoch, views.index.tolist(), views.crops[0].flatten().tolist()))
        return self.layer(views.crops[0].mean(1).flatten(1)).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveOnce(L.Callback):
    """Saves at one hook, once `after` batches have been trained on."""

    def __init__(self, hook: str, after: int, path: Path) -> None:
        self.hook, self.after, self.path = hook, after, path

    def _save(self, trainer: L.Trainer, hook: str) -> None:
        if hook == self.hook and trainer.fit_loop.total_batch_idx + 1 == self.after:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer, "batch")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer, "epoch")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer, "validation")

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        if self.hook == "exception":
            trainer.save_checkpoint(self.path)


def data(num_workers: int = 0, engine: str = "batched") -> DataModule:
    recipe = ViewRecipe([CropSpec(4, Augment(noise=1.0), count=2)], engine=engine)
    return DataModule(TinySource(), recipe, batch_size=BATCH, num_workers=num_workers, seed=3)


def trainer(folder: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    return bare_trainer(folder, *callbacks, **({"max_epochs": EPOCHS} | settings))


def run_both(
    path: Path, hook: str, after: int, make: Any, **settings: Any
) -> tuple[list[tuple[int, list[int], list[float]]], list[tuple[int, list[int], list[float]]]]:
    """What the uninterrupted run saw after the save, and what the resumed one saw."""
    whole, rest = Recorder(), Recorder()
    trainer(path.parent, SaveOnce(hook, after, path), **settings).fit(whole, make())
    trainer(path.parent, **settings).fit(rest, make(), ckpt_path=path, weights_only=True)
    return whole.seen[after:], rest.seen


@pytest.mark.parametrize("after", range(1, EPOCHS * PER_EPOCH + 1))
def test_saved_after_any_batch(after: int, tmp_path: Path) -> None:
    expected, seen = run_both(tmp_path / "a.ckpt", "batch", after, data)
    assert seen == expected


@pytest.mark.parametrize("limit", [{"max_epochs": EPOCHS}, {"max_epochs": -1, "max_steps": EPOCHS * PER_EPOCH}])
@pytest.mark.parametrize(
    ("hook", "validate"),
    [("batch", True), ("batch", False), ("epoch", True), ("epoch", False), ("validation", True)],
)
def test_saved_at_an_epochs_end(hook: str, validate: bool, limit: dict[str, int], tmp_path: Path) -> None:
    settings = limit | ({} if validate else {"limit_val_batches": 0})
    expected, seen = run_both(tmp_path / "a.ckpt", hook, PER_EPOCH, data, **settings)
    assert seen == expected


@pytest.mark.parametrize(("after", "workers"), [(2, 0), (6, 0), (7, 0), (10, 0), (7, 2), (10, 2)])
def test_with_accumulation_and_workers(after: int, workers: int, tmp_path: Path) -> None:
    settings = {"accumulate_grad_batches": 2}
    expected, seen = run_both(tmp_path / "a.ckpt", "batch", after, lambda: data(workers), **settings)
    assert seen == expected


def test_the_cpu_engine_with_workers(tmp_path: Path) -> None:
    expected, seen = run_both(tmp_path / "a.ckpt", "batch", 7, lambda: data(2, "cpu"))
    assert seen == expected


def test_with_limited_batches(tmp_path: Path) -> None:
    expected, seen = run_both(tmp_path / "a.ckpt", "batch", 3, data, limit_train_batches=3)
    assert seen == expected
    expected, seen = run_both(tmp_path / "b.ckpt", "batch", 4, data, limit_train_batches=3)
    assert seen == expected


def test_validation_within_the_epoch(tmp_path: Path) -> None:
    expected, seen = run_both(tmp_path / "a.ckpt", "validation", 8, data, val_check_interval=3)
    assert seen == expected


@pytest.mark.parametrize("cut", [3, 5, 8])
def test_a_batch_that_an_exception_cut_short_is_run_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    whole, broken, rest = Recorder(), Recorder(stop_in=cut), Recorder()
    trainer(tmp_path).fit(whole, data())
    with pytest.raises(RuntimeError, match="cut short"):
        trainer(tmp_path, SaveOnce("exception", 0, path)).fit(broken, data())
    trainer(tmp_path).fit(rest, data(), ckpt_path=path, weights_only=True)
    assert broken.seen + rest.seen == whole.seen


def test_resumed_twice(tmp_path: Path) -> None:
    first, second = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    whole, middle, rest = Recorder(), Recorder(), Recorder()
    trainer(tmp_path, SaveOnce("batch", 3, first)).fit(whole, data())
    trainer(tmp_path, SaveOnce("batch", 8, second)).fit(middle, data(), ckpt_path=first, weights_only=True)
    trainer(tmp_path).fit(rest, data(), ckpt_path=second, weights_only=True)
    assert rest.seen == whole.seen[8:]


@pytest.mark.parametrize("after", [1, 5, 7, 10])
def test_a_view_loader_without_a_data_module(after: int, tmp_path: Path) -> None:
    images = [torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8) for _ in range(SAMPLES)]
    recipe = ViewRecipe([CropSpec(4, Augment(noise=1.0), count=2)])
    expected, seen = run_both(tmp_path / "a.ckpt", "batch", after, lambda: ViewLoader(images, recipe, batch_size=BATCH))
    assert seen == expected


def test_a_view_loader_with_limited_batches(tmp_path: Path) -> None:
    """The epoch ended before the loader did: what is left of it is not the next one's start."""
    images = [torch.zeros(1, 4, 4, dtype=torch.uint8)] * SAMPLES
    recipe = ViewRecipe([CropSpec(4, Augment(noise=1.0))])
    path = tmp_path / "a.ckpt"
    expected, seen = run_both(path, "batch", 3, lambda: ViewLoader(images, recipe, batch_size=2), limit_train_batches=3)
    assert seen == expected


def test_every_epoch_has_its_own_order_and_every_sample_at_most_once(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path).fit(module, data())
    epochs = [
        list(itertools.chain.from_iterable(index for epoch, index, _ in module.seen if epoch == number))
        for number in range(EPOCHS)
    ]
    assert all(len(set(order)) == PER_EPOCH * BATCH for order in epochs)
    assert len({tuple(order) for order in epochs}) == EPOCHS


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    module = data()
    for loader in (module.train_dataloader(), module.evaluation_loader("train")):
        assert list(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_plain_loop_advances_and_resumes() -> None:
    def loader() -> ResumableLoader:
        return data().train_dataloader()

    whole = loader()
    epochs = [[batch.index.tolist() for batch in whole] for _ in range(2)]
    assert epochs[0] != epochs[1]

    cut = loader()
    list(cut)
    stream = iter(cut)
    seen = [next(stream).index.tolist() for _ in range(2)]
    resumed = loader()
    resumed.load_state_dict(cut.state_dict())
    assert seen + [batch.index.tolist() for batch in resumed] == epochs[1]


def test_resumed_behind_the_last_batch_is_the_next_epoch() -> None:
    cut = data().train_dataloader()
    stream = iter(cut)
    for _ in range(PER_EPOCH):
        next(stream)
    resumed = data().train_dataloader()
    resumed.load_state_dict(cut.state_dict())
    list(stream)
    assert [batch.index.tolist() for batch in resumed] == [batch.index.tolist() for batch in cut]


def test_a_look_at_the_first_batch_costs_nothing() -> None:
    loader = data().train_dataloader()
    first = next(iter(loader)).index.tolist()
    assert next(iter(loader)).index.tolist() == first
