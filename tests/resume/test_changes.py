"""A checkpoint from another configuration or an older version says what is not as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from selfdistill import __version__
from selfdistill.assembly import build_method
from selfdistill.config import UserError, resolved
from selfdistill.resume import Continued, check_fits, what_changed


def test_values_gone_and_new_keys() -> None:
    before = {"data": {"size": 8, "old": 1}, "seed": 0, "trainer": {"max_epochs": 3, "accelerator": "cpu"}}
    now = {"data": {"size": 9, "new": {"a": 2}}, "seed": 0, "trainer": {"max_epochs": 5, "accelerator": "gpu"}}
    expected = "data.size 8 -> 9, trainer.max_epochs 3 -> 5; no longer known data.old=1; new since data.new.a=2"
    assert what_changed(before, now) == expected
    assert what_changed(now, now) == ""


def test_what_changes_nothing_is_not_named() -> None:
    before: dict[str, Any] = {"run_dir": "a", "ckpt_path": None, "callbacks": {"last": {"every_n_epochs": 1}}}
    now: dict[str, Any] = {"run_dir": "b", "ckpt_path": "auto", "callbacks": {"last": {"every_n_epochs": 5}}}
    assert what_changed(before, now) == ""


def test_a_long_list_is_cut() -> None:
    line = what_changed({f"k{i:02}": 0 for i in range(20)}, {f"k{i:02}": 1 for i in range(20)})
    assert line.endswith("k07 0 -> 1 and 12 more")


def test_an_older_version(compose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose("method=byol_like")
    plain = resolved(config)
    module = build_method(config)
    module.provenance = {"config": plain, "version": __version__}
    older = OmegaConf.to_container(OmegaConf.create(plain))
    assert isinstance(older, dict)
    about = {"method": "BYOL", "version": "0.0.1", "config": older}
    stored = {"selfdistill": about, "state_dict": module.state_dict(), "epoch": 0, "global_step": 7}
    check_fits(Continued(Path("last.ckpt"), stored), module)
    assert capsys.readouterr().err == ""

    older["student"] = {"noise": 0.5, "gone": 1}
    del older["seed"]
    check_fits(Continued(Path("last.ckpt"), stored), module)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.startswith(
        f"warning: not a continuation of the same run (written by selfdistill 0.0.1, this is {__version__}), "
        "student.noise 0.5 -> 0.0; no longer known student.gone=1; new since seed=0; learning rates"
    )

    about["method"] = "DINO"
    with pytest.raises(UserError, match="ckpt_path: a checkpoint of DINO given, this run is BYOL"):
        check_fits(Continued(Path("last.ckpt"), stored), module)
