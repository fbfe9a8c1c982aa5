"""How a command ends when something goes wrong: a line, an exit code, and a traceback for who asks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from selfdistill import cli, report
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
