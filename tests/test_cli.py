"""How a command ends when something goes wrong: a line, an exit code, and a traceback for who asks."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from selfdistill import cli, report, runner
from selfdistill.config import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "run=x"])
    # launch sets it; undone at the end
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    GlobalHydra.instance().clear()


UNREADABLE = PermissionError(13, "Permission denied", "a/picture.png")


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UserError("run: 'x' given"), "error: run: 'x' given\n", 2),
        (UNREADABLE, "error: a/picture.png: Permission denied\n", 1),
    ],
)
@pytest.mark.parametrize("traceback", [False, True])
def test_an_error_inside_the_task(
    error: Exception,
    line: str,
    code: int,
    traceback: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr(report, "report", fails)
    if traceback:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as end:
        cli.launch(cli._report, "report")
    assert end.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert (said != line) == traceback
    assert ("in fails" in said) == traceback


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("")
    monkeypatch.setattr(sys, "argv", ["report", "run=x", "hydra.run.dir=taken/x"])
    with pytest.raises(SystemExit) as end:
        cli.launch(cli._report, "report")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: hydra.run.dir: ")


OWN = """defaults:
  - train
  - _self_
{more}
hydra:
  searchpath: [pkg://selfdistill.conf]
  run: {{dir: run}}
"""


@pytest.mark.parametrize(
    ("more", "given", "says"),
    [
        ("seed: 11", "teacher.momentum=0.99", None),
        ("seed: 11", "teacher.momentm=0.99", "teacher.momentm: no such key; did you mean teacher.momentum?"),
        ("seed: 11", "teacher.momentum=2", "teacher.momentum: 2 given, allowed is a number from 0 to 1"),
        ("teacher: {momentm: 0.9}", "seed=1", "teacher.momentm: no such key; did you mean teacher.momentum?"),
        ("seed: -1", "teacher.momentum=0.99", "seed: -1 given"),
    ],
)
def test_a_configuration_of_the_users_own(
    more: str, given: str, says: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the working directory, as any path, and checked before anything is made."""
    Path("own").mkdir()  # as the file in it, which stays a name
    Path("own", "own.yaml").write_text(OWN.format(more=more))
    monkeypatch.setattr(sys, "argv", ["train", "--config-path", "own", "-cn", "own", given])
    seeds: list[int] = []
    monkeypatch.setattr(runner, "fit", lambda config: seeds.append(config.seed))
    if says is None:
        cli.launch(cli._train, "train")
        assert seeds == [11]
        return
    with pytest.raises(SystemExit) as end:
        cli.launch(cli._train, "train")
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n"), seeds) == (2, 1, [])
    assert says in said
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["-m", "seed=0,1", "--cfg", "job"], "-m: given with --cfg or --info, allowed is one of them; leave -m out"),
        (["--config-dir", "nowhere"], "--config-dir: 'nowhere' given, no such folder"),
        (["~trainer.accumulate_grad_batches"], "trainer.accumulate_grad_batches: taken away, but it is read; leave it"),
        (["--method=byol_like"], "--method: given as a flag, settings have no dashes; write method=byol_like"),
        (["trainer.accelerator=gpuu"], "trainer.accelerator: 'gpuu' given, allowed is auto or cpu or gpu"),
        (["run_dir=here"], "run_dir: here given, but the run fills it in; set hydra.run.dir=<folder>"),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch: 0 given, allowed is"),
        (
            ["trainer.gradient_clip_val=1"],
            "trainer.gradient_clip_val: not stated here; +trainer.gradient_clip_val=<value>",
        ),
        (["views.crops.0.sise=3"], "views.crops.0.sise: no such key; did you mean views.crops.0.size?"),
        (["accumulate=exact"], "accumulate: 'exact' given, but trainer.accumulate_grad_batches=1 does not read it"),
    ],
)
def test_what_hydra_would_answer_with_a_traceback(
    given: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *given])
    with pytest.raises(SystemExit) as end:
        cli.launch(cli._train, "train")
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (2, 1)
    assert says in said


def test_a_flag_may_stand_between_the_overrides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "method=dino_like", "--cfg", "job", "seed=7"])
    cli.launch(cli._train, "train")
    said = capsys.readouterr().out
    assert "seed: 7" in said
    assert "selfdistill.methods.DINO" in said


@pytest.mark.parametrize(("file", "stays"), [(None, False), ("train.log", False), ("config.yaml", True)])
def test_ctrl_c_during_the_imports_leaves_no_folder(
    file: str | None, stays: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But what another process has written there."""

    importing = importlib.import_module

    def interrupted(name: str, package: str | None = None) -> object:
        if name != "selfdistill.runner":
            return importing(name, package)
        assert Path("run").is_dir()
        if file is not None:
            Path("run", file).write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train", "hydra.run.dir=run"])
    monkeypatch.setattr(importlib, "import_module", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.launch(cli._train, "train")
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted before the first step: nothing to continue\n"
    assert Path("run").exists() == stays
    assert not logging.getLogger("torch").isEnabledFor(logging.CRITICAL)
    logging.disable(logging.NOTSET)
