"""Every command and snippet on the site and in the README.

A command of ours is composed and checked, those titled "not run here" by the slow tests. Where it has no such title and
needs nothing that a reader has to fill in (`<…>`), the slow tests run it, cut short by debug=fast (what takes a run, a
file, a folder or several processes is run in test_commands_after_a_run.py). What needs more than that has the title.
Other commands are checked for what they name; one of no known kind fails. Python is run, a page from top to bottom,
with a `dataset` at hand and a Trainer that stops after a batch; blocks that are a file (its name stands above) are
written for commands.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import wandb
from documented import COMMANDS, NOT_HERE, OURS, PRINTS, Command, lines, overrides_of
from hydra.core.override_parser.overrides_parser import OverridesParser
from read_pages import ROOT, Block, blocks

from selfdistill.config import UserError, check
from selfdistill.preview import preview
from selfdistill.runner import fit

# run in this process: no flag that prints, no further processes, no images of the reader's
_ALONE = re.compile(r" --(?:help|cfg)\b| trainer=| '?data\.root=")
RUN = [c for c in OURS if c.run and c.ours in ("train", "preview") and not _ALONE.search(c.text)]


def _id(command: Command) -> str:
    return f"{command.where} {command.text}"


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A folder that can stand for a run, a folder of images and a checkpoint's."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    return tmp_path


SLOW = {False: (), True: pytest.mark.slow}
COMPOSED = [pytest.param(c, marks=SLOW[c.titled], id=_id(c)) for c in OURS]


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The first and the last job of a sweep; of what a sweeper draws from an interval, neither."""
    first, last = [], []
    for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        if not parsed.is_sweep_override():
            values = [text]
        elif parsed.is_discrete_sweep():
            values = [f"{text.partition('=')[0]}={value}" for value in parsed.sweep_string_iterator()]
        else:
            continue
        first.append(values[0])
        last.append(values[-1])
    return [first, last] if first != last else [first]


@pytest.mark.parametrize("command", COMPOSED)
def test_our_commands_compose_and_pass_the_check(command: Command, filled: Path, written: Path) -> None:
    assert command.ours
    words = command.arguments(filled)
    overrides, folders = overrides_of(words, written)
    for job in _jobs(overrides) if "-m" in words else [overrides]:
        check(command.ours, job, search_path=folders)


def test_what_no_test_runs_is_marked() -> None:
    run = {c.text for c in COMMANDS if c in RUN or c.run_after or c.trains_on}
    found = [(block, line) for block in blocks("bash") for line in lines(block) if NOT_HERE.search(line)]
    assert len(found) > 30
    unmarked = [f"{block.page}:{block.line}: {line}" for block, line in found if block.run and line not in run]
    assert not unmarked


def test_a_mark_of_the_readme_is_seen_where_titles_are_hidden() -> None:
    marked = [block for block in blocks("bash") if block.page == "README.md" and not block.run]
    assert marked
    assert all(block.text.startswith("# not run here\n") for block in marked)


def test_a_wrong_command_would_be_found(filled: Path) -> None:
    with pytest.raises(UserError, match="did you mean"):
        check("train", ["teacher.momentm=0.9"])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in OURS], ids=_id)
def test_other_commands_name_what_is_there(command: Command, filled: Path) -> None:
    words = command.words(filled)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    match words:
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text()
            for target in targets:
                assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), target
        case [word, *_] if re.match(r"if$|exit$|export$|eval$|\w+=", word) or PRINTS.search(command.text):
            pass
        case ["source", ".venv/bin/activate"] | ["wandb", "login" | "sync", *_] | ["mkdocs", "serve" | "build", *_]:
            pass
        case ["pip", "install", what]:
            found = re.fullmatch(r"(?:selfdistill|\.)(?:\[(\w[\w-]*)\])?", what)
            assert found, what
            assert found[1] is None or found[1] in extras
        case ["python", path, *_] if path.endswith(".py"):
            assert (ROOT / path).is_file(), path
        case ["pytest", path, *_]:
            assert (ROOT / path.partition("::")[0]).exists(), path
        case _:
            pytest.fail(f"{command.where}: a command of no known kind: {command.text}")


_COMPLETED = [c for c in COMMANDS if c.text.startswith("eval ")]


@pytest.mark.parametrize("command", _COMPLETED, ids=_id)
def test_the_shell_completes(command: Command) -> None:
    """As bash does it: the line so far and the number of its last word in, what could follow out."""
    (called,) = re.findall(r"\$\((.+?) --shell-completion", command.text)
    line = f"{called} method=dino_like teacher.mom"
    asked = f"{command.text}\nCOMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(line.split()) - 1}\n"
    asked += "complete -p | sed 's/.* //'; hydra_bash_completion; printf '%s\\n' \"${COMPREPLY[@]}\""
    found = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", asked], cwd=ROOT, env=found, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [called.split()[0], "teacher.momentum=", "teacher.momentum_end="], done.stderr


def test_bash_and_the_installed_command_are_completed() -> None:
    assert len(_COMPLETED) == 2


def _python() -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {}
    seen = set()
    for block in blocks("python"):
        if block.file is None and block.text not in seen:
            seen.add(block.text)
            found.setdefault(block.page, []).append(block)
    return found


@pytest.mark.parametrize("page", _python())
def test_python_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    short: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu", "logger": False}
    short |= {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer: Callable[..., L.Trainer] = L.Trainer
    monkeypatch.setattr(L, "Trainer", lambda **given: functools.partial(trainer, **(given | short))())
    torch.manual_seed(0)
    names: dict[str, Any] = {"dataset": list(torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8))}
    for block in _python()[page]:
        exec(compile(block.text, f"{page}:{block.line}", "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=_id)
def test_our_commands_run(
    command: Command, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.ours
    words = command.arguments(tmp_path)
    overrides, folders = overrides_of(words, written)
    overrides = _jobs(overrides)[0] if "-m" in words else overrides
    monkeypatch.syspath_prepend(str(written))
    if command.ours == "preview":
        config = check("preview", [*overrides, f"output={tmp_path}/views.png"]).config
        preview(config)
        assert (tmp_path / "views.png").is_file()
        return
    config = check("train", [*overrides, "debug=fast", "evaluation.draws=1"], search_path=folders).config
    config.run_dir = str(tmp_path / "run")
    config.trainer.accelerator = "cpu"
    config.trainer.enable_progress_bar = False
    fit(config)
    wandb.finish()
    if config.cost_only:
        assert "M_optimizer" in capsys.readouterr().out
        return
    assert (tmp_path / "run" / "summary.json").is_file()
