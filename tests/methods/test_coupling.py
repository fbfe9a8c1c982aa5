"""What is said of plain accumulation at the start, and that batch norms count once what is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from trainers import bare_trainer

from selfdistill.assembly import build_data, build_method, build_trainer, set_execution
from selfdistill.methods import BYOL, SelfDistillModule
from selfdistill.methods.accumulation import Window, images_of_step
from selfdistill.methods.coupling import approximated, equal_counts
from selfdistill.networks import SmallCNN
from selfdistill.optim import OptimizerRecipe
from selfdistill.views import Views

BOTH = frozenset({"teacher", "student"})
Compose = Callable[..., Any]


def built(compose: Compose, *settings: str) -> tuple[SelfDistillModule[Any, Any], Any]:
    config = compose("debug=fast", "data.batch_size=16", *settings)
    return build_method(config), build_data(config).train_dataloader()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method=msn_like"], "cluster (Sinkhorn), me_max (mean entropy), batch norm"),
        (["method=byol_like", "objective=koleo"], "koleo (KoLeo), batch norm"),
        (["method=ijepa_like"], "latent (numbers of masked patches)"),
        (
            ["method=byol_like", "objective=variance_covariance"],
            "variance_covariance (variances over the batch), batch",
        ),
        (
            ["method=data2vec_like", "objective=supervised", "data.labelled=0.1"],
            "supervised (numbers of labelled images)",
        ),
        (["method=dinov2_like", "method.head_norm=null", "weights.koleo=0.1"], "koleo (KoLeo)"),
    ],
)
def test_one_line_names_what_is_approximated(settings: list[str], says: str, compose: Compose) -> None:
    module, loader = built(compose, *settings)
    line = approximated(module, 4, loader)
    assert line is not None
    assert "\n" not in line
    assert line.startswith("accumulate: 4 micro-batches a step only approximate one large batch in ")
    assert says in line
    assert approximated(module, 1, loader) is None


@pytest.mark.parametrize(
    "settings",
    [
        ["method=data2vec_like"],
        ["method=data2vec_like", "objective=supervised"],
        ["method=ibot_like", "method.head_norm=null"],
        ["method=dino_like", "backbone=small_vit", "method.head_norm=null"],
    ],
)
def test_nothing_is_said_where_plain_accumulation_is_exact(settings: list[str], compose: Compose) -> None:
    module, loader = built(compose, *settings)
    assert approximated(module, 4, loader) is None


def test_what_a_foreign_loader_gives_may_vary() -> None:
    assert equal_counts(DataLoader([1, 2]), 2) == []  # type: ignore[arg-type]


def small() -> BYOL:
    torch.manual_seed(0)
    return BYOL(SmallCNN(1, (4, 4, 4, 6)), hidden_dim=8, out_dim=5, optimizer=OptimizerRecipe("sgd", 0.1))


def loader(count: int = 2) -> Any:
    generator = torch.Generator().manual_seed(0)
    crops = [[torch.randn(6, 1, 8, 8, generator=generator) for _ in range(2)] for _ in range(count)]
    views: Any = [Views(pair, (BOTH, BOTH)) for pair in crops]
    return DataLoader(views, batch_size=None, collate_fn=lambda batch: batch)


def fit(module: BYOL, tmp_path: Path, **settings: Any) -> None:
    bare_trainer(tmp_path, max_epochs=1, **settings).fit(module, loader())


def test_it_is_printed_once_and_only_with_micro_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(small(), tmp_path)
    assert "accumulate" not in capsys.readouterr().out
    fit(small(), tmp_path, accumulate_grad_batches=2)
    printed = capsys.readouterr().out
    assert printed.count("accumulate:") == 1
    assert "in batch norm; accumulate=exact mends not this" in printed
    module = small()
    module.micro_batch_size = 3
    fit(module, tmp_path)
    assert "accumulate: exact, but batch norm sees micro-batches of 3 images" in capsys.readouterr().out


def test_batch_norms_count_once_what_is_computed_twice(tmp_path: Path) -> None:
    """As many batches as micro-batches, and statistics that a second look would have moved further."""

    def statistics(module: BYOL) -> dict[str, Any]:
        parts = {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)}
        assert all(part.momentum == 0.1 for part in parts.values())
        return {n: (m.num_batches_tracked.item(), m.running_mean) for n, m in parts.items()}  # type: ignore[operator,union-attr]

    module, expected = small(), small()
    module.micro_batch_size = 3
    fit(module, tmp_path, limit_train_batches=1)
    whole = next(iter(loader()))
    for images in (slice(0, 3), slice(3, 6)):
        with torch.no_grad():
            expected.predictions(Views([crop[images] for crop in whole.crops], whole.roles))
    found, wanted = statistics(module), statistics(expected)
    for name in found:
        if not name.startswith("teacher."):
            assert found[name][0] == wanted[name][0] == 2
            torch.testing.assert_close(found[name][1], wanted[name][1])


def test_every_image_of_a_window_weighs_the_same() -> None:
    window = Window()
    weights = [window.weight(images) for images in (8, 8, 4)]
    factor = window.close(4)
    assert [weight / 4 * factor for weight in weights] == pytest.approx([0.4, 0.4, 0.2])
    assert [window.weight(5) for _ in range(3)] == [1, 1, 1]
    assert window.close(3) == 1
    assert window.close(3) == 1


def test_the_command_joins_micro_batches_into_a_step(compose: Compose) -> None:
    """As plain accumulation would: steps an epoch, images a step, learning rate; the rest of the epoch too."""
    found = {}
    for accumulate in ("plain", "exact"):
        config = compose("method=mocov3_like", "data.batch_size=128", "trainer.accumulate_grad_batches=4",
                         f"accumulate={accumulate}", "optimizer.scaling=linear", "trainer.max_epochs=2")  # fmt: skip
        module, datamodule, trainer = build_method(config), build_data(config), build_trainer(config, [])
        set_execution(config, module)
        module.trainer = trainer
        trainer.strategy.connect(module)
        trainer._data_connector.attach_data(module, datamodule=datamodule)
        found[accumulate] = (
            trainer.estimated_stepping_batches,
            images_of_step(trainer),
            module.configure_optimizers().param_groups[0]["base_lr"],
        )
        assert trainer.accumulate_grad_batches == (4 if accumulate == "plain" else 1)
        assert module.micro_batch_size == (None if accumulate == "plain" else 128)
        sizes = [len(batch) for batch in datamodule.train_dataloader().sampler]
        assert sizes == ([128] * 9 if accumulate == "plain" else [512, 512, 128])
    assert found["plain"] == found["exact"]
    assert found["exact"][:2] == (6, 512)
