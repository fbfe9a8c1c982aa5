"""The probe learns beside the run, which is the same run with and without it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import bare_trainer

from selfdistill import BYOL
from selfdistill.callbacks import OnlineProbe
from selfdistill.networks import SmallCNN
from selfdistill.optim import OptimizerRecipe
from selfdistill.views import ViewLoader


def split(seed: int, count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return TensorDataset(torch.randn(count, 5, generator=generator) + 3 * F.one_hot(labels, 5), labels)


class Foreign(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        features = self.net(batch[0])
        return {"loss": features.square().mean(), "features": features}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def embed(self, images: Tensor) -> Tensor:
        return self.net(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.01)


def step(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return outputs["features"], batch[1]


def fit(tmp_path: Path, *callbacks: L.Callback, epochs: int = 2) -> tuple[L.Trainer, Foreign]:
    module = Foreign()
    fitted = bare_trainer(tmp_path, *callbacks, max_epochs=epochs, num_sanity_val_steps=1, gradient_clip_val=1e-3)
    loaders = DataLoader(split(0, 60), batch_size=20), DataLoader(split(1, 50), batch_size=16)
    fitted.fit(module, *loaders)
    return fitted, module


def test_the_run_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    """Weights bit for bit, though dropout draws and the gradient is clipped; the module holds nothing of the probe."""
    _, alone = fit(tmp_path)
    drawn = torch.rand(3)
    probe = OnlineProbe(3, step=step)
    fitted, probed = fit(tmp_path, probe)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(value, probed.state_dict()[name]) for name, value in alone.state_dict().items())
    assert probed.state_dict().keys() == alone.state_dict().keys()
    held = {p for group in fitted.optimizers[0].param_groups for p in group["params"]}
    assert held == set(probed.parameters())


def test_learns_what_sgd_learns(tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spied(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        seen.append((outputs["features"].clone(), batch[1]))
        return step(outputs, batch)

    probe = OnlineProbe(3, lr=0.3, weight_decay=0.01, step=spied)
    fitted, module = fit(tmp_path, probe, epochs=3)
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    for features, labels in seen:
        optimizer.zero_grad()
        F.cross_entropy(layer(2 * F.normalize(features.detach())), labels).backward()
        optimizer.step()
    learned = probe.state_dict()["classifier"]
    torch.testing.assert_close(learned["weight"], layer.weight.detach())
    module.eval()
    test = split(1, 50)
    predicted = layer(2 * F.normalize(module.net(test.tensors[0]))).argmax(1)
    expected = float((predicted == test.tensors[1]).double().mean())
    assert probe.accuracy == pytest.approx(expected)
    assert expected > 0.6
    assert float(fitted.callback_metrics["val/probe"]) == pytest.approx(expected)


def test_continues_from_a_checkpoint(tmp_path: Path) -> None:
    half = OnlineProbe(3, step=step)
    fitted, _ = fit(tmp_path, half, epochs=2)
    fitted.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    loaded = OnlineProbe(3, step=step)
    loaded.load_state_dict(copy.deepcopy(half.state_dict()))
    assert torch.equal(loaded.state_dict()["classifier"]["weight"], half.state_dict()["classifier"]["weight"])
    generator_free = torch.randn(20, 4, generator=torch.Generator().manual_seed(5)), torch.arange(20) % 3
    for probe in (half, loaded):
        probe._learn(*generator_free)
    assert torch.equal(loaded.state_dict()["classifier"]["weight"], half.state_dict()["classifier"]["weight"])
    assert loaded.accuracy == half.accuracy


def test_works_on_our_methods_and_skips_what_has_no_label(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (16, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = [0, 1, -1, 1] * 4

    class Labelled(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return images[i], labels[i]

    torch.manual_seed(0)
    module = BYOL(SmallCNN(3, (4, 4, 8, 8)), hidden_dim=8, out_dim=4, optimizer=OptimizerRecipe("sgd", 0.01))
    probe = OnlineProbe(2)
    fitted = bare_trainer(tmp_path, probe, max_epochs=2, num_sanity_val_steps=1)
    fitted.fit(module, ViewLoader(Labelled(), views="byol", batch_size=8, size=16))
    assert probe.state_dict()["classifier"]["weight"].shape == (2, 8)
    assert 0 <= float(fitted.callback_metrics["train/probe"]) <= 1
    assert probe.accuracy is None
    before = copy.deepcopy(probe.state_dict()["classifier"])
    probe._learn(torch.randn(4, 8), torch.full((4,), -1))
    after = probe.state_dict()["classifier"]
    assert all(value.isfinite().all() for value in after.values())
    assert before.keys() == after.keys()


def test_says_why_it_is_off_and_what_it_refuses(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"OnlineProbe is off: .* give OnlineProbe\(step=…\)"):
        fit(tmp_path, OnlineProbe(3), epochs=1)
    with pytest.raises(ValueError, match="classes: 2 given, a label is 2"):
        fit(tmp_path, OnlineProbe(2, step=step), epochs=1)
    for settings in ({"classes": 1}, {"classes": 3, "lr": 0.0}):
        with pytest.raises(ValueError, match="OnlineProbe"):
            OnlineProbe(**settings)  # type: ignore[arg-type]
