"""A sweep from its command to its table: refuse, launch through Hydra, stop when asked, sum up."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from selfdistill.config import CONF, UserError
from selfdistill.config.quoting import quoted
from selfdistill.files import write_text
from selfdistill.report import write_report
from selfdistill.report.sweep import Job, Sweep, read_sweep, write_job
from selfdistill.sweeps.job import STOP, alone
from selfdistill.sweeps.matching import identity
from selfdistill.sweeps.plan import Plan, neutral, plan, program, settings_of
from selfdistill.sweeps.table import terminal_table, write_csv


def sweep(main: Callable[[], Any], arguments: Namespace, config_name: str) -> int:
    """Run every job that can run, and leave the sweep's table and page.

    Args:
        main: the ``@hydra.main`` function.
        arguments: Hydra's, parsed.
        config_name: of the configuration.

    Returns:
        The exit code: 0, 1 where a job failed, 128 + the signal where the sweep was stopped.

    Raises:
        UserError: no job can run; nothing is left behind.
    """
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(f"-m: given to {processes} processes, allowed is one; its jobs start their own, trainer=ddp")
    asked = plan(arguments, config_name)
    jobs, refused = _checked(asked)
    if jobs is not None and len(refused) == len(jobs):
        raise UserError(_all_refused(list(refused.values())))
    new = not asked.folder.exists()
    with _held(asked.folder):
        return _launched(main, asked, jobs, refused, new)


def _launched(
    main: Callable[[], Any], asked: Plan, jobs: list[dict[str, Any]] | None, refused: dict[int, str], new: bool
) -> int:
    """The sweep's part that writes: only one process at a time has its folder."""
    _prepare(asked, jobs)
    for number, line in refused.items():
        write_job(asked.folder, Job(number, settings_of((asked.jobs or [])[number], asked.swept), "refused", line))
    sys.argv = [sys.argv[0], "--multirun", *_for_hydra(asked, [n for n in range(len(jobs or [])) if n not in refused])]
    print(f"sweep: {asked.folder}", flush=True)
    with _stopped_by_signals(asked.folder) as received:
        try:
            main()
        except KeyboardInterrupt:
            pass
        except (ValueError, NotImplementedError) as error:
            # Optuna has no best trial where none has a figure
            if not str(error).startswith("No trials are completed"):
                raise UserError(f"hydra.sweeper: {' '.join(str(error).split())}") from error
        finally:
            done = read_sweep(asked.folder)
            if done.jobs and not all(job.status == "refused" for job in done.jobs):
                _sum_up(asked.folder, done)
            elif new and not done.jobs:
                shutil.rmtree(asked.folder)
    if done.jobs and all(job.status == "refused" for job in done.jobs):
        if new:
            shutil.rmtree(asked.folder)
        raise UserError(_all_refused([job.line for job in done.jobs]))
    if received:
        print("the same command continues the sweep", file=sys.stderr)
        return 128 + received[0]
    return int(any(job.status == "failed" for job in done.jobs))


def _checked(asked: Plan) -> tuple[list[dict[str, Any]] | None, dict[int, str]]:
    """The jobs with what identifies each, and why some are refused."""
    warnings: list[str] = []
    jobs: list[dict[str, Any]] = []
    refused: dict[int, str] = {}
    if asked.jobs is None and not any((CONF / key).is_dir() for key in asked.swept):
        warnings = asked.composed(asked.fixed).warnings
    for number, overrides in enumerate(asked.jobs or []):
        jobs.append({"overrides": overrides, "identity": None})
        try:
            checked = asked.check(overrides)
            jobs[-1]["identity"] = identity(checked.config)
            warnings += checked.warnings
        except UserError as error:
            refused[number] = " ".join(str(error).split())
    for line in dict.fromkeys(warnings):
        print(f"warning: {line}", file=sys.stderr)
    return None if asked.jobs is None else jobs, refused


def _all_refused(lines: list[str]) -> str:
    different = list(dict.fromkeys(lines))
    return different[0] if len(different) == 1 else f"all {len(lines)} jobs are refused, the first: {different[0]}"


def _prepare(asked: Plan, jobs: list[dict[str, Any]] | None) -> None:
    folder = asked.folder
    try:
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        for old in folder.glob("jobs/[0-9]*.json"):
            old.unlink()
        (folder / STOP).unlink(missing_ok=True)
        about = {
            "command": shlex.join([sys.executable.rpartition(os.sep)[2], *program()[1:], *sys.argv[1:]]),
            "swept": asked.swept,
            "program": program(),
            "flags": asked.flags,
            "pid": os.getpid(),
            "jobs": jobs,
            "fixed": asked.fixed,
            "search": {neutral(key): key for key in asked.search},
            "config": {"name": asked.config_name, "search_path": asked.search_path, "conf": str(asked.conf.resolve())},
        }
        write_text(folder / "sweep.json", json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"hydra.sweep.dir: {folder} cannot be written ({error.strerror}); choose another") from None


def _for_hydra(asked: Plan, numbers: list[int]) -> list[str]:
    """The arguments of Hydra's part. It sees numbers of jobs, or of a search the keys under neutral names: what they
    mean may compose only together, and a job that does not is refused by itself.
    """
    given = [*asked.flags, *asked.choosers, quoted("hydra.sweep.dir", asked.folder), "hydra.sweep.subdir=."]
    if asked.jobs is not None:
        return [*given, f"+sweep_job={','.join(map(str, numbers))}"]
    return [*given, "hydra.sweeper.params=null", *(f"+{neutral(key)}={text}" for key, text in asked.search.items())]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder for this process alone.

    Raises:
        UserError: another one has it, or it cannot be made.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(alone(folder / "locks" / "sweep"))
        except OSError as error:
            raise UserError(f"hydra.sweep.dir: {folder} cannot be written ({error.strerror}); choose another") from None
        if lock is None:
            raise UserError(f"hydra.sweep.dir: another process runs the sweep in {folder}; wait for it, or stop it")
        yield


@contextmanager
def _stopped_by_signals(folder: Path) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM let the running jobs end after their step; the second one ends at once."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        (folder / STOP).touch()
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print("\nstopping: running jobs save and end after this step; once more stops at once", file=sys.stderr)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        (folder / STOP).unlink(missing_ok=True)


def _sum_up(folder: Path, done: Sweep) -> None:
    found = folder / "optimization_results.yaml"
    if found.is_file():
        text = found.read_text(encoding="utf-8")
        for key in done.swept:
            text = text.replace(f"+{neutral(key)}:", f"{key}:")
        write_text(found, text)
    table = write_csv(done, folder / "results.csv")
    print(f"\n{terminal_table(done)}\n\ntable: {table}\npage: {write_report(folder)}", flush=True)
