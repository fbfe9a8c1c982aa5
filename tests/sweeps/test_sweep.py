"""A sweep from its command to its page, with jobs that take no time: a program in place of training."""

from __future__ import annotations

import csv
import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from selfdistill import cli
from selfdistill.config import UserError
from selfdistill.report.sweep import read_sweep
from selfdistill.sweeps import sweep

# Seeds say what happens: 6 ends early, 7 is refused by a constructor, 8 breaks, 9 is interrupted until it is continued.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from omegaconf import OmegaConf
from selfdistill.config import check

given = dict(text.partition("=")[::2] for text in sys.argv[1:])
run = Path(given.pop("hydra.run.dir").strip("'"))
config = check("train", [f"{key}={value}" for key, value in given.items()]).config
with open(run.parent / "calls", "a") as calls:
    calls.write(f"{config.seed} {config.ckpt_path}\\n")
if config.seed == 7:
    run.rmdir()
    print("error: backbone: it does not fit")
    sys.exit(2)
config.run_dir = str(run)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
if config.seed == 8:
    raise RuntimeError("the disk is gone")
going_on = (run / "checkpoints" / "last.ckpt").exists()
(run / "checkpoints" / "last.ckpt").write_text("")
if config.seed == 9 and not going_on:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.kill(os.getppid(), signal.SIGINT)
    signal.sigwait({signal.SIGINT})
    sys.exit(130)
method = config.method._target_.rpartition(".")[2]
knn = {"BYOL": 0.5, "SimSiam": 0.7, "DINO": 0.6}[method] + config.seed / 100
summary = {"method": method, "validation_knn": knn, "figures": {"trained": {"knn": knn}}, "seconds": {"train": 1.0}}
summary["stopped"] = "stopped in epoch 3: behind" if config.seed == 6 else None
(run / "summary.json").write_text(json.dumps(summary))
"""


class Command:
    """``command("seed=0,1")``: the exit code of that sweep."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "a sweep"
        program = folder / "program.py"
        program.write_text(PROGRAM)
        monkeypatch.setattr("selfdistill.sweeps.run.program", lambda: [sys.executable, str(program)])
        # as the command does: errors of Hydra's part come through
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        self._monkeypatch = monkeypatch

    def __call__(self, *overrides: str, main: Callable[[], Any] = cli._train) -> int:
        GlobalHydra.instance().clear()
        arguments = ["-m", *overrides, f"hydra.sweep.dir='{self.folder}'"]
        self._monkeypatch.setattr(sys, "argv", ["train", *arguments])
        return sweep(main, get_args_parser().parse_args(arguments), "train")

    def calls(self) -> list[str]:
        """The jobs that were started since the last look: seed and checkpoint."""
        file = self.folder / "calls"
        found = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    def statuses(self) -> list[str]:
        return [job.status for job in read_sweep(self.folder).jobs]

    def rows(self) -> list[dict[str, str]]:
        with open(self.folder / "results.csv", newline="") as lines:
            return list(csv.DictReader(lines))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, monkeypatch)


def test_refused_and_broken_jobs_end_no_sweep_and_finished_ones_are_found_again(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    # BYOL has no prototypes: Hydra itself could not compose these cells, nor the command without a method
    assert command("method=byol_like,dino_like", "method.prototypes=64", "seed=0,7,8") == 1
    assert command.statuses() == ["refused"] * 3 + ["finished", "refused", "failed"]
    assert sorted(command.calls()) == ["0 auto", "7 auto", "8 auto"]
    printed = capsys.readouterr().out
    rows = command.rows()
    assert [row["method"] for row in rows] == ["byol_like"] * 3 + ["dino_like"] * 3
    assert "method.prototypes: no such key" in rows[0]["line"]
    assert rows[3]["validation_knn"] == "0.6"
    assert rows[4]["line"] == "backbone: it does not fit"
    assert rows[5]["line"].startswith("RuntimeError: the disk is gone (see jobs/005.log)")
    assert all(row["line"] in printed for row in rows)
    page = (command.folder / "comparison.html").read_text(encoding="utf-8")
    assert "the disk is gone" in page
    assert "method.prototypes: no such key" in page

    # the same again: what is done is not done again, what broke is
    assert command("method=byol_like,dino_like", "method.prototypes=64", "seed=0,7,8") == 1
    assert sorted(command.calls()) == ["7 auto", "8 auto"]
    # a larger grid in the same folder, in another order: found by what it is, not by its number
    assert command("seed=1,0", "method.prototypes=64", "method=dino_like") == 0
    assert command.calls() == ["1 auto"]
    assert [row["validation_knn"] for row in command.rows()] == ["0.61", "0.6"]


def test_an_interrupted_sweep_is_continued_by_the_same_command(command: Command) -> None:
    assert command("seed=0,9,1") == 130
    assert command.statuses() == ["finished", "interrupted", "waiting"]
    assert command.calls() == ["0 auto", "9 auto"]
    assert (command.folder / "comparison.html").is_file()
    assert [row["status"] for row in command.rows()] == ["finished", "interrupted", "waiting"]
    assert not (command.folder / "stop").exists()

    # what another process still runs is left to it
    with open(command.folder / "locks" / "001", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert command("seed=9") == 0
    assert [job.line for job in read_sweep(command.folder).jobs] == ["another process runs it"]
    assert command.calls() == []

    assert command("seed=0,9,1") == 0
    assert command.statuses() == ["finished"] * 3
    # in its own folder, where ckpt_path=auto finds its checkpoint
    assert command.calls() == ["9 auto", "1 auto"]
    assert [row["run"] for row in command.rows()] == ["000", "001", "002"]


def test_a_sweep_that_runs_is_not_started_again(command: Command) -> None:
    def meanwhile() -> None:
        mine = sys.argv
        with pytest.raises(UserError, match="hydra.sweep.dir: another process runs the sweep in"):
            command("seed=0,1")
        sys.argv = mine
        cli._train()

    assert command("seed=0,1", main=meanwhile) == 0
    assert command.statuses() == ["finished"] * 2


def broken() -> None:
    raise ValueError("low is above\nhigh")


def test_where_nothing_can_run_nothing_is_left(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="teacher.momentm: no such key; did you mean teacher.momentum") as error:
        command("seed=0,1", "teacher.momentm=0.9")
    assert "jobs are refused" not in str(error.value)
    with pytest.raises(UserError, match=r"all 2 jobs are refused, the first: teacher.momentum: 2 given"):
        command("teacher.momentum=2,3")
    with pytest.raises(UserError, match="method: 'byol' given, allowed is .*; did you mean byol_like"):
        command("method=byol", "seed=0,1")
    # refused later, where the objects are made
    with pytest.raises(UserError, match="backbone: it does not fit"):
        command("seed=7", "method=byol_like,simsiam_like")
    # a sweeper that does not take its space
    with pytest.raises(UserError, match="hydra.sweeper: low is above high"):
        command("seed=0,1", main=broken)
    # torchrun would start it in each of its processes
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="-m: given to 2 processes"):
        command("seed=0,1")
    assert not command.folder.exists()


def test_a_run_that_ended_early_says_why(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second time it is found
        assert command("seed=6,1") == 0
        assert [row["line"] for row in command.rows()] == ["stopped in epoch 3: behind", ""]
        assert [row["validation_knn"] for row in command.rows()] == ["0.56", "0.51"]
        printed = capsys.readouterr().out
        assert "[1/2] seed=6: finished: stopped in epoch 3: behind\n" in printed
        assert "\nfinished: seed=6: stopped in epoch 3: behind\n" in printed


def test_a_pattern_chooses_and_the_record_names_the_command(command: Command) -> None:
    assert command("method=glob(sims*)") == 0
    assert [row["validation_knn"] for row in command.rows()] == ["0.7"]
    about = json.loads((command.folder / "sweep.json").read_text())
    assert about["swept"] == ["method"]
    assert about["command"].endswith(f"-m 'method=glob(sims*)' 'hydra.sweep.dir='\"'\"'{command.folder}'\"'\"''")


@pytest.mark.slow
# optuna 2's, at import, of SQLAlchemy 2
@pytest.mark.filterwarnings("ignore:.*declarative_base.*")
def test_a_search_goes_on_past_refused_and_broken_trials(command: Command) -> None:
    # SimSiam has no teacher whose momentum could be set, and Hydra could not compose it
    space = ("method=simsiam_like,byol_like", "seed=0,8", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.seed=1")
    assert command("hparams_search=optuna", *space) == 1
    rows = command.rows()
    assert [row["status"] for row in rows] == [
        {"simsiam_like": "refused", "byol_like": "failed" if row["seed"] == "8" else "finished"}[row["method"]]
        for row in rows
    ]
    assert {row["status"] for row in rows} == {"refused", "failed", "finished"}
    assert "teacher.momentum: no such key" in next(row["line"] for row in rows if row["status"] == "refused")
    best = (command.folder / "optimization_results.yaml").read_text()
    assert "teacher.momentum: 0.99" in best
    assert "method: byol_like" in best
    first = command.calls()
    # the same seed proposes the same trials: what is done is found
    assert command("hparams_search=optuna", *space) == 1
    assert command.calls() == [call for call in first if call.startswith("8")]
