"""k-NN while training: the right figure of the right network, at the right time."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import bare_trainer

from selfdistill.callbacks import EpochLines, OnlineKNN


def split(seed: int, count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 5, generator=generator) + 1.5 * labels[:, None], labels)


class Foreign(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        assert not self.net.training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.0)


def embed(module: Any, images: Tensor) -> Tensor:
    return module.net(images)


def fit(tmp_path: Path, *callbacks: L.Callback, epochs: int = 1) -> tuple[L.Trainer, Foreign]:
    module = Foreign()
    trainer = bare_trainer(tmp_path, *callbacks, max_epochs=epochs, num_sanity_val_steps=1)
    trainer.fit(module, DataLoader(split(0, 60), batch_size=20), DataLoader(split(1, 50), batch_size=16))
    return trainer, module


def test_the_figure_is_scikit_learns(tmp_path: Path) -> None:
    bank, queries = split(0, 60), split(1, 50)
    callback = OnlineKNN(k=7, temperature=0.1, bank=DataLoader(bank, batch_size=13), embed=embed)
    trainer, module = fit(tmp_path, callback)
    module.eval()
    with torch.no_grad():
        a, b = (nn.functional.normalize(module.net(s.tensors[0])) for s in (bank, queries))
    # cosine distance to weight: exp((1 − d)/T)
    reference = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda d: torch.exp((1 - torch.tensor(d)) / 0.1).numpy()
    ).fit(a.numpy(), bank.tensors[1].numpy())
    expected = reference.score(b.numpy(), queries.tensors[1].numpy())
    assert callback.accuracy == pytest.approx(expected)
    assert float(trainer.callback_metrics["val/knn"]) == pytest.approx(expected)


def test_evaluates_at_the_first_epoch_and_each_nth(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counted(OnlineKNN):
        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if self._queries:
                calls.append(trainer.current_epoch + 1)
            super().on_validation_epoch_end(trainer, pl_module)

    fit(tmp_path, Counted(every_n_epochs=3, bank=DataLoader(split(0, 60), batch_size=60), embed=embed), epochs=7)
    assert calls == [1, 3, 6, 7]


def test_without_a_bank_or_an_embedding(tmp_path: Path) -> None:
    silent = OnlineKNN(embed=embed)
    fit(tmp_path, silent)
    assert silent.accuracy is None
    with pytest.raises(ValueError, match=r"Foreign has no embed\(images\)"):
        fit(tmp_path, OnlineKNN(bank=DataLoader(split(0, 60))))


def test_validating_alone_tells_the_figure(tmp_path: Path) -> None:
    callback = OnlineKNN(k=7, bank=DataLoader(split(0, 60), batch_size=13), embed=embed)
    (found,) = bare_trainer(tmp_path, callback).validate(Foreign(), DataLoader(split(1, 50), batch_size=16))
    assert found == {"val/knn": pytest.approx(callback.accuracy)}


class TwoOptimizers(Foreign):
    """As adversarial methods have them: Lightning's ``global_step`` counts both."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/other", 1.0)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net.parameters(), lr=0.0) for _ in range(2)]


def test_the_figure_stands_in_the_row_of_its_validation(tmp_path: Path) -> None:
    callback = OnlineKNN(k=7, bank=DataLoader(split(0, 60), batch_size=13), embed=embed)
    logger = Rows(tmp_path)
    trainer = bare_trainer(tmp_path, callback, max_epochs=2, logger=logger)
    trainer.fit(TwoOptimizers(), DataLoader(split(0, 60), batch_size=20), DataLoader(split(1, 50), batch_size=16))
    steps = {name: [step for step, row in logger.rows if name in row] for name in ("val/knn", "val/other")}
    assert steps["val/knn"] == steps["val/other"]
    assert len(steps["val/knn"]) == 2


def test_epoch_lines_are_few_and_end_with_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, EpochLines(lines=3), epochs=7)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/7", "3/7", "6/7", "7/7"]


class Rows(CSVLogger):
    """Keeps what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, metrics))


def test_a_figure_is_logged_and_shown_as_new_only_where_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knn = OnlineKNN(every_n_epochs=3, bank=DataLoader(split(0, 60), batch_size=60), embed=embed)
    trainer = bare_trainer(tmp_path, knn, EpochLines(), max_epochs=7)
    logger = Rows(tmp_path)
    trainer.loggers = [logger]
    trainer.fit(Foreign(), DataLoader(split(0, 60), batch_size=20), DataLoader(split(1, 50), batch_size=16))
    measured = [(step, row["epoch"]) for step, row in logger.rows if "val/knn" in row]
    assert measured == [(2, 0), (8, 2), (17, 5), (20, 6)]  # three steps an epoch
    shown = [re.findall(r"k-NN [\d.]+(.*)  \d+ s", line)[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["", " (step 2)", "", " (step 8)", " (step 8)", "", ""]
    assert knn.state_dict()["measured_at"] == 20


def test_a_run_that_goes_on_within_an_epoch_names_the_step_of_the_figure_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    knn, lines = OnlineKNN(), EpochLines()
    knn.load_state_dict({"accuracy": 0.5, "measured_at": 2})
    trainer: Any = SimpleNamespace(
        global_step=8, max_epochs=5, current_epoch=2, callback_metrics={"val/knn": 0.5}, callbacks=[knn, lines]
    )
    lines.on_train_start(trainer, Foreign())
    lines.on_train_epoch_end(trainer, Foreign())
    assert "k-NN 0.5 (step 2)" in capsys.readouterr().out
