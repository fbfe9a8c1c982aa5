"""What a command gives and nothing reads is refused once the parts are built, before the first batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from selfdistill.assembly import build_callbacks, build_data, build_method
from selfdistill.config import UserError
from selfdistill.config.overrides import split
from selfdistill.unused import check_shots, check_used, with_known_monitors


def used(compose: Any, overrides: str, folder: Path, *more: L.Callback) -> list[L.Callback]:
    given = overrides.split(" ")
    config = compose(*given)
    OmegaConf.resolve(config)
    keys = split(given)[0]
    module, callbacks = build_method(config), [*build_callbacks(config, folder), *more]
    check_used(keys, config, module, callbacks)
    return with_known_monitors(keys, config, module, callbacks, labelled=True)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("data.labelled=0.1", "data.labelled: 0.1 given, but nothing learns from labels: choose objective=supervised"),
        ("objective=koleo data.labelled=5", "data.labelled: 5 given"),
        ("views=ibot views.masks.probability=0.3", "views.masks.probability: 0.3 given, but neither the method nor an"),
        ("backbone.image_size=16", "backbone.image_size: 16 given, but of these backbones only vision transformers"),
        ("backbone=resnet18 backbone.patch_size=2", "backbone.patch_size: 2 given, but this backbone has no patches"),
        ("data.image.patch=4", "data.image.patch: 4 given, but this backbone has no patches"),
        ("data.image.small_stem=false", "data.image.small_stem: false given, but this backbone is no ResNet"),
        ("backbone=small_vit backbone.small_stem=true", "backbone.small_stem: true given"),
        ("backbone=small_cnn backbone.drop_path=0.1", "backbone.drop_path: 0.1 given, but this backbone has no"),
        ("backbone=small_vit backbone.pretrained=true", "backbone.pretrained: true given, but there are no published"),
        ("callbacks.best.monitor=foo", "callbacks.best.monitor: 'foo' given, allowed is what is logged: train/*"),
        ("callbacks.best.monitor=val/kn", "; did you mean val/knn?"),
        ("callbacks.best.monitor=val/probe", "callbacks.best.monitor: 'val/probe' given"),
        ("callbacks.online_knn=null callbacks.best.monitor=val/knn", "callbacks.best.monitor: 'val/knn' given"),
    ],
)
def test_unread_is_refused(overrides: str, says: str, tmp_path: Path, compose: Any) -> None:
    with pytest.raises(UserError) as caught:
        used(compose, overrides, tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "method=byol_like",
        "views=ibot",  # masks that come with a group
        "views=ibot views.masks=null",
        "objective=supervised data.labelled=0.1",
        "callbacks=probe data.labelled=0.1",
        "method=ibot_like views.masks.probability=0.3 data.image.patch=4",
        "views=ibot objective=masked_tokens backbone=small_vit views.masks.probability=0.3",
        "backbone=small_vit backbone.image_size=16 backbone.patch_size=4 backbone.drop_path=0.1",
        "backbone=resnet18 data.image.small_stem=false backbone.drop_path=0.1",
        "callbacks=probe callbacks.best.monitor=val/probe",
        "callbacks.best.monitor=train/loss callbacks.best.mode=min",
        "callbacks.best.monitor=monitor/rank",
    ],
)
def test_what_is_read_passes(overrides: str, tmp_path: Path, compose: Any) -> None:
    assert any(isinstance(callback, ModelCheckpoint) for callback in used(compose, overrides, tmp_path))


def test_a_callback_of_others_may_read_and_log_anything(tmp_path: Path, compose: Any) -> None:
    kept = used(compose, "data.labelled=0.1 callbacks.best.monitor=foo", tmp_path, L.Callback())
    assert any(isinstance(callback, ModelCheckpoint) for callback in kept)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_monitor_of_a_file_is_kept_where_another_may_log_it_and_refused_otherwise(
    foreign: bool, tmp_path: Path, compose: Any
) -> None:
    config = compose("callbacks.best.monitor=val/mine")
    OmegaConf.resolve(config)
    module, callbacks = build_method(config), build_callbacks(config, tmp_path)
    if foreign:
        kept = with_known_monitors([], config, module, [*callbacks, L.Callback()], labelled=True)
        assert any(isinstance(callback, ModelCheckpoint) for callback in kept)
        return
    with pytest.raises(UserError, match=r"callbacks\.best\.monitor: 'val/mine' given, allowed is what is logged"):
        with_known_monitors([], config, module, callbacks, labelled=True)


def test_an_objective_of_others_may_read_labels_and_masks(tmp_path: Path, compose: Any) -> None:
    config = compose("views=ibot", "views.masks.probability=0.3", "data.labelled=0.1")
    OmegaConf.resolve(config)
    module = build_method(config)
    module.objectives["mine"] = torch.nn.Identity()
    module.objectives["mine"].__class__ = type("Mine", (torch.nn.Identity,), {"__module__": "mine"})
    check_used(["views.masks.probability", "data.labelled"], config, module, build_callbacks(config, tmp_path))


def test_without_its_figure_the_default_checkpoint_is_left_out(tmp_path: Path, compose: Any) -> None:
    kept = used(compose, "callbacks.online_knn=null", tmp_path)
    assert not any(isinstance(callback, ModelCheckpoint) for callback in kept)


def test_shots_beyond_the_smallest_class(compose: Any) -> None:
    config = compose("evaluation.shots=[1,5000]")
    data = build_data(config)
    with pytest.raises(UserError, match=r"evaluation\.shots: 5000 given, but class 8 has \d+ training images; give at"):
        check_shots(["evaluation.shots"], "evaluation.shots", config, data)
    check_shots([], "evaluation.shots", config, data)  # stated in a file, they are left out
    config.evaluation.shots = [1, 5]
    check_shots(["evaluation.shots"], "evaluation.shots", config, data)


def test_a_command_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "src.train", "data.labelled=0.1", "trainer.accelerator=cpu"]
    root = Path(__file__).parents[1]
    done = subprocess.run([*command, f"hydra.run.dir={folder}"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.labelled: 0.1 given, but nothing learns from labels")
    assert len(done.stderr.splitlines()) == 1
    assert not folder.exists()
