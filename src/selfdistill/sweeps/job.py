"""One job of a sweep, in its own process and folder, under whatever launcher Hydra has."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from selfdistill.config import UserError, check, hydra_kept
from selfdistill.config.pairs import check_fits
from selfdistill.config.quoting import quoted
from selfdistill.processes import IN_SWEEP
from selfdistill.report.sweep import Job, Status, write_job
from selfdistill.sweeps.matching import Found, find, identity, new_name
from selfdistill.sweeps.plan import settings_of
from selfdistill.text_table import duration

STOP = "stop"
"""A file in the sweep's folder: running jobs end after their step, others do not start."""


def run_job(config: DictConfig) -> float | None:
    """What Hydra's launchers call in place of training: find the job's run again, or start it as a process.

    Returns:
        The objective: k-NN accuracy on the validation split; None for a job that did not finish.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir)
    about = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    if about["jobs"] is None:
        number, overrides = int(hydra.job.num), _proposed(about, list(hydra.overrides.task))
        wanted, refused = _identified(about, overrides)
    else:
        number = int(config.sweep_job)
        overrides, wanted = about["jobs"][number]["overrides"], about["jobs"][number]["identity"]
        refused = ""
    job = Job(number, settings_of(overrides, about["swept"]), "waiting")
    if refused:
        job = replace(job, status="refused", line=refused)
        write_job(folder, job)
        _say(about, job, f"refused: {refused}")
        return None
    found = find(folder, wanted)
    if found is not None:
        job = replace(job, run=found.name)
    if found is not None and found.finished:
        job = replace(job, status="finished")
        said = "finished before"
    elif (folder / STOP).exists():
        job = replace(job, status="waiting" if found is None else "interrupted", line="the sweep was stopped")
        said = "not run: the sweep was stopped"
    else:
        started = time.monotonic()
        try:
            job = _run(folder, about, job, found, overrides, hydra.runtime.cwd)
        except BaseException:
            write_job(folder, replace(job, status="interrupted", line="stopped; the same command continues it"))
            raise
        said = job.line or f"{job.status}, {duration(time.monotonic() - started)}"
    objective = None
    if job.status == "finished":
        summary = json.loads((folder / str(job.run) / "summary.json").read_text(encoding="utf-8"))
        objective = summary["validation_knn"]
        said = said if objective is None else f"{said}, validation k-NN {objective:.4g}"
        if stopped := summary.get("stopped"):
            job, said = replace(job, line=stopped), stopped
    write_job(folder, job)
    _say(about, job, f"{job.status}: {said}" if job.line else said)
    return objective


def _proposed(about: dict[str, Any], overrides: list[str]) -> list[str]:
    """The job's overrides from those that a search gave to Hydra, under neutral names."""
    given = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    return [*about["fixed"], *(f"{key}={given[name]}" for name, key in about["search"].items())]


def _identified(about: dict[str, Any], overrides: list[str]) -> tuple[str, str]:
    """The job's identity, or why it is refused."""
    config = about["config"]
    try:
        with hydra_kept():
            checked = check(config["name"], overrides, search_path=config["search_path"], conf=Path(config["conf"]))
            check_fits(checked.plain)
        return identity(checked.config), ""
    except UserError as error:
        return "", " ".join(str(error).split())


def _run(folder: Path, about: dict[str, Any], job: Job, found: Found | None, overrides: list[str], cwd: str) -> Job:
    name = new_name(folder, job.number) if found is None else found.name
    job = replace(job, run=name)
    with alone(folder / "locks" / name) as lock:
        if lock is None:
            return replace(job, status="interrupted", line="another process runs it")
        command = [*about["program"], *about["flags"], *overrides, quoted("hydra.run.dir", folder / name)]
        if found is not None or not any(text.startswith("ckpt_path=") for text in overrides):
            # begins the run, or goes on in its folder
            command.append("ckpt_path=auto")
        _say(about, job, "started" if found is None else f"goes on in {name}")
        log = folder / "jobs" / f"{job.number:03d}.log"
        code = _child(command, folder, log, lock, cwd, {"WANDB_RUN_GROUP": folder.name, "WANDB_NAME": job.label})
    return _outcome(folder, job, code, log)


def _child(command: list[str], folder: Path, log: Path, lock: int, cwd: str, extra: dict[str, str]) -> int:
    """Run ``command`` to its end; its exit code. It inherits ``lock`` and holds it should this process be killed."""
    environment = {**os.environ, **extra, IN_SWEEP: folder.name}
    # the parent set it for itself
    environment.pop("HYDRA_FULL_ERROR", None)
    with open(log, "wb") as output, _deaf(folder):
        # a session of its own: Ctrl-C in the terminal reaches it once, from here
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
        asked = False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(timeout=0.5)
                if not asked and (folder / STOP).exists():
                    child.send_signal(signal.SIGINT)
                    asked = True
        except BaseException:
            # a second Ctrl-C, or the cluster takes the machine away: no time for more than the step
            child.terminate()
            child.wait()
            raise


def _outcome(folder: Path, job: Job, code: int, log: Path) -> Job:
    run = folder / str(job.run)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()
    if code == 0 and (run / "summary.json").is_file():
        return replace(job, status="finished", line="")
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
        return replace(job, status="interrupted", line="stopped; the same command continues it")
    status: Status = "failed"
    if code == 2 and not run.exists():
        # nothing was trained; what an earlier part left may be there
        status = "refused"
    if last is None:
        last = f"ended by {signal.Signals(-code).name}" if code < 0 else (lines or ["no summary"])[-1]
        last = f"{last} (see {log.relative_to(folder)})"
    return replace(job, status=status, line=last, run=job.run if run.exists() else None)


@contextlib.contextmanager
def alone(file: Path) -> Iterator[int | None]:
    """A lock that goes with the process and its children; None where another has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield lock.fileno()


@contextlib.contextmanager
def _deaf(folder: Path) -> Iterator[None]:
    """A worker process of a launcher passes over Ctrl-C, which the sweep's own process turns into ``STOP``."""
    about = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    if about["pid"] == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    # not SIG_IGN, which the child would inherit
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(about: dict[str, Any], job: Job, what: str) -> None:
    of = "" if about["jobs"] is None else f"/{len(about['jobs'])}"
    print(f"[{job.number + 1}{of}] {job.label}: {what}", flush=True)
