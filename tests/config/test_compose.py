"""Composition: every file composes and instantiates, and mistakes get one line before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from selfdistill.assembly import build_callbacks, build_teacher
from selfdistill.callbacks import OnlineKNN
from selfdistill.config import CONF, UserError, check

GROUPS = sorted(
    (folder.name, file.stem)
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name not in ("hydra", "protocol", "__pycache__")
    for file in folder.glob("*.yaml")
)


def override(group: str, choice: str) -> list[str]:
    if (group, choice) == ("backbone", "timm"):
        return ["backbone=timm", "backbone.name=resnet10t"]
    if group == "data" and choice not in ("digits", "shapes"):
        return [f"data={choice}", "data.root=tests"]
    if group == "scale":
        return []
    return [f"{group}={choice}"]


@pytest.mark.parametrize(("group", "choice"), GROUPS)
def test_every_file_composes_and_instantiates(group: str, choice: str, compose: Any) -> None:
    config = compose(*override(group, choice))
    node = config.get(group)
    if group in ("backbone", "divergence", "optimizer", "views"):
        with torch.device("meta" if group == "backbone" else "cpu"):  # the largest have a billion parameters
            assert instantiate(node) is not None
    if group == "teacher":
        assert build_teacher(config) is not None
    if group == "callbacks":
        assert all(instantiate(value) is not None for value in node.values() if value is not None)


@pytest.mark.parametrize("file", sorted((CONF / "scale").rglob("*_*.yaml")), ids=lambda file: file.stem)
def test_what_small_data_needs_is_read(file: Path, compose: Any) -> None:
    """Each file belongs to a method or to views, and the composition of these takes its values."""
    data, _, name = file.stem.partition("_")
    group = "views" if file.parent.name == "views" else "method"
    assert (CONF / group / f"{name}.yaml").exists()
    assert (CONF / "data" / f"{data}.yaml").exists()
    plain = OmegaConf.to_container(compose(f"data={data}", f"{group}={name}"))
    stated = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(plain, dict)
    assert isinstance(stated, dict)
    stated.pop("defaults", None)
    at = plain["views"] if group == "views" else plain
    assert at == OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(at), OmegaConf.create(stated)))


def line(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        check("train", list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=byol"], "method: 'byol' given, allowed is"),
        (["method=byol"], "did you mean byol_like?"),
        (["backbone=resnet81"], "did you mean resnet18?"),
        (["teacher.momentm=0.9"], "teacher.momentm: no such key; did you mean teacher.momentum?"),
        (["optimiser.lr=0.1"], "did you mean optimizer.lr?"),
        (["teacher.momentum=1.5"], "teacher.momentum: 1.5 given, allowed is a number from 0 to 1"),
        (["teacher.momentum=-0.1"], "teacher.momentum: -0.1 given"),
        (["teacher.momentum=fast"], "teacher.momentum: 'fast' given"),
        (["teacher.momentum=nan"], "teacher.momentum: nan given"),
        (["data.batch_size=0"], "data.batch_size: 0 given, allowed is a whole number of at least 1"),
        (["data.batch_size=2.5"], "data.batch_size: 2.5 given"),
        (["optimizer.lr=-1"], "optimizer.lr: -1 given"),
        (["divergence=kl", "divergence.student_temperature=0"], "divergence.student_temperature: 0 given"),
        (["backbone=timm"], "backbone.name"),
        (["seed=-1"], "seed: -1 given, allowed is a whole number from 0 to 4294967295"),
        (["trainer.max_epochs=0"], "trainer.max_epochs: 0 given"),
        (["teacher.momentum=null"], "teacher.momentum: null given"),
        (["data=folder", "data.root=nowhere"], "data.root: 'nowhere' given, no such folder"),
        (["logger=tensorboard,wandb"], "several values are a sweep with -m"),
        (["method"], "give key=value"),
        (["optimizer.freeze={last_layer: 5}"], "optimizer.freeze: a mapping takes its entries one by one"),
    ],
)
def test_mistakes_get_one_line(overrides: list[str], says: str) -> None:
    assert says in line(*overrides)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["teacher.momentum=0.5"], "teacher.momentum=0.5"),
        (["optimizer.lr=0.05"], "optimizer.lr=0.05"),
        (["divergence=kl", "divergence.teacher_temperature=0.02"], "divergence.teacher_temperature=0.02"),
        (["+weights.distill=5"], "weights.distill=5"),
    ],
)
def test_untypical_values_warn_once(overrides: list[str], key: str) -> None:
    warnings = check("train", overrides).warnings
    assert len(warnings) == 1
    assert key in warnings[0]
    assert "typical range" in warnings[0]


@pytest.mark.parametrize("method", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_the_papers_own_values_never_warn(method: str) -> None:
    assert check("train", [f"method={method}"]).warnings == []


def test_typical_values_do_not_warn() -> None:
    assert check("train", ["teacher.momentum=0.995", "optimizer.lr=0.0005"]).warnings == []


def test_the_typical_range_reaches_to_what_the_data_set_takes() -> None:
    assert check("train", ["teacher.momentum=0.98", "optimizer.lr=0.0015"]).warnings == []
    (warning,) = check("train", ["teacher.momentum=0.94"]).warnings
    assert "[0.95, 0.9999]" in warning
    assert len(check("train", ["data=cifar10", "data.root=tests", "teacher.momentum=0.98"]).warnings) == 1


def test_the_command_line_wins_over_method_and_scale() -> None:
    plain = check("train", ["backbone=resnet18", "divergence=kl", "data.batch_size=32", "teacher=snapshot"]).plain
    assert plain["backbone"]["name"] == "resnet18"
    assert plain["divergence"]["_target_"].endswith("KL")
    assert plain["data"]["batch_size"] == 32
    assert plain["teacher"]["every"] == "1 epochs"


def test_scale_holds_what_digits_need_and_method_the_papers_values() -> None:
    small = check("train", []).plain
    paper = check("train", ["data=imagenette", "data.root=tests"]).plain
    assert small["backbone"]["name"] == "small_cnn"
    assert paper["backbone"]["name"] == "resnet50"
    assert paper["optimizer"]["name"] == "lars"
    assert paper["optimizer"]["lr"] == 0.45
    assert paper["trainer"]["max_epochs"] == 100
    assert paper["method"]["paper"] == small["method"]["paper"]


def test_a_number_stands_where_a_schedule_does() -> None:
    plain = check("train", ["method=dino_like", "method.teacher_temperature=0.05"]).plain
    assert plain["method"]["teacher_temperature"] == 0.05


def test_no_callbacks_leaves_what_a_small_data_set_sets_of_them(tmp_path: Path) -> None:
    config = check("train", ["callbacks=[]", "debug=fast"]).config
    assert config.callbacks.online_knn.every_n_epochs == 5
    assert not any(isinstance(callback, OnlineKNN) for callback in build_callbacks(config, tmp_path))
