"""Runs in processes of their own, forked from one that has imported everything, that kill themselves where told."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from selfdistill.config import UserError, check

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["selfdistill.runner"])

# It needs the gradient of the step before, which would make a checkpoint larger by the model; nothing acts on it.
NOT_STORED = "gradient_signal"

# Accumulation, a ragged last one (two and a half steps an epoch), and a checkpoint after every step.
SHORT = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=5",
    "trainer.accumulate_grad_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "evaluation.draws=1",
    "evaluation.k=1",
    "data.batch_size=16",
    "callbacks.last.every_n_train_steps=1",
    "callbacks.collapse_monitor.every=2",
)
Kill = tuple[str, int]
"""A phase, and which of the times that it is reached."""


def train(overrides: Sequence[str], folder: Path, kill: Kill | None = None, **how: Any) -> int:
    """The exit code of a run, negative for the signal that killed it; see :func:`start`."""
    process = start(overrides, folder, kill, **how)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def start(
    overrides: Sequence[str],
    folder: Path,
    kill: Kill | None = None,
    *,
    with_signal: int = signal.SIGKILL,
    full_from: int | None = None,
    environment: Mapping[str, str] | None = None,
    phases: Path | None = None,
    pages: float | None = None,
) -> Any:
    """A process with a run in ``folder``, which speaks in ``<folder>.log``.

    Args:
        overrides: of the command.
        folder: of the run.
        kill: where it sends itself ``with_signal``.
        with_signal: the signal.
        full_from: the checkpoint from which on no file can grow beyond 20 kB, as on a disk that is full.
        environment: variables that are added.
        phases: a file of 32 bytes, in which stands what the run does at the moment.
        pages: share of the time for pages; at the usual one a run of seconds gets none before its end.
    """
    config = _composed(tuple(overrides)).copy()
    config.run_dir = str(folder)
    process = SERVER.Process(
        target=_train, args=(config, folder, kill, with_signal, full_from, dict(environment or {}), phases, pages)
    )
    process.start()
    return process


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return check("train", [*overrides, "trainer.accelerator=cpu"]).config


def said(folder: Path) -> str:
    return folder.with_suffix(".log").read_text(encoding="utf-8")


def _train(
    config: DictConfig,
    folder: Path,
    kill: Kill | None,
    with_signal: int,
    full_from: int | None,
    environment: dict[str, str],
    phases: Path | None,
    pages: float | None,
) -> None:
    os.environ |= environment
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    from selfdistill.runner import fit

    if kill is not None:
        PHASES[kill[0]](Countdown(kill[1], with_signal))
    if phases is not None:
        _tell_phases(phases)
    if full_from is not None:
        _before(lambda: _io().AtomicCheckpointIO, "save_checkpoint")(Full(full_from))
    if pages is not None:
        _give_pages(pages)
    try:
        fit(config)
    except UserError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(2) from None


class Countdown:
    """Sends a signal to this process at the ``left``-th call."""

    def __init__(self, left: int, number: int = signal.SIGKILL) -> None:
        self.left = left
        self.number = number

    def __call__(self) -> None:
        if self.due():
            self.kill()

    def due(self) -> bool:
        self.left -= 1
        return self.left == 0

    def kill(self) -> None:
        os.kill(os.getpid(), self.number)


class Full(Countdown):
    def kill(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))


def _before(owner: Any, name: str) -> Callable[[Countdown], None]:
    def install(count: Countdown) -> None:
        original = getattr(owner(), name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            count()
            return original(*args, **kwargs)

        setattr(owner(), name, replaced)

    return install


def _after(owner: Any, name: str) -> Callable[[Countdown], None]:
    def install(count: Countdown) -> None:
        original = getattr(owner(), name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            count()
            return result

        setattr(owner(), name, replaced)

    return install


def _while_writing(count: Countdown) -> None:
    original = torch.save

    def half(what: Any, file: Any) -> None:
        if not count.due():
            original(what, file)
            return
        whole = io.BytesIO()
        original(what, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        count.kill()

    torch.save = half


def _while_logging(count: Countdown) -> None:
    from selfdistill.metrics_csv import _Writer

    original = _Writer.save

    def half(writer: Any) -> None:
        if writer.metrics and count.due():
            file = Path(writer.metrics_file_path)
            before = file.read_bytes() if file.exists() else b""
            original(writer)
            whole = file.read_bytes()
            file.write_bytes(whole[: (len(before) + len(whole)) // 2])
            count.kill()
        original(writer)

    _Writer.save = half  # type: ignore[method-assign]


def _module() -> Any:
    from selfdistill.methods import SelfDistillModule

    return SelfDistillModule


def _update() -> Any:
    from selfdistill.teacher import TeacherUpdate

    return TeacherUpdate


def _ema() -> Any:
    from selfdistill.teacher.ema import EMA

    return EMA


def _io() -> Any:
    from selfdistill import checkpoint_io

    return checkpoint_io


def _history() -> Any:
    from selfdistill.callbacks import History

    return History


def _best() -> Any:
    from selfdistill.callbacks import BestCheckpoint

    return BestCheckpoint


def _runner() -> Any:
    from selfdistill import runner

    return runner


def _give_pages(share: float) -> None:
    from selfdistill import assembly
    from selfdistill.report.refresh import RefreshReport

    assembly.RefreshReport = partial(RefreshReport, share=share)  # type: ignore[assignment, misc]


def _tell_phases(file: Path) -> None:
    from selfdistill.callbacks import OnlineKNN

    handle = os.open(file, os.O_WRONLY)
    stack = ["set-up"]

    def show() -> None:
        os.pwrite(handle, stack[-1].encode().ljust(32), 0)

    def tell(owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            stack.append(phase)
            show()
            try:
                return original(*args, **kwargs)
            finally:
                stack.pop()
                show()

        setattr(owner, name, told)

    started = _history().on_train_start

    def begin(*args: Any) -> None:
        started(*args)
        stack[0] = "backward and between steps"
        show()

    _history().on_train_start = begin
    tell(_module(), "training_step", "forward")
    tell(_module(), "on_before_optimizer_step", "optimizer step")
    tell(_update(), "on_train_batch_end", "teacher")
    tell(_module(), "validation_step", "validation")
    tell(OnlineKNN, "on_validation_epoch_end", "validation")
    tell(_io().AtomicCheckpointIO, "save_checkpoint", "checkpoint")
    tell(_runner(), "backbone_figures", "figures")
    tell(_runner(), "export_backbone", "files at the end")
    tell(_runner(), "last_report", "files at the end")


PHASES: dict[str, Callable[[Countdown], None]] = {
    "forward": _before(_module, "training_step"),
    "backward": _after(_module, "on_after_backward"),
    "optimizer step": _before(_module, "on_before_optimizer_step"),
    "before the teacher": _before(_update, "on_train_batch_end"),
    "between teacher and commit": _after(_ema, "update"),
    "checkpoint write": _while_writing,
    "between two renames": _after(_io, "_keep"),
    "between best and last": _after(_best, "on_train_epoch_end"),
    "between epochs": _before(_history, "on_train_epoch_start"),
    "validation": _before(_module, "validation_step"),
    "metrics write": _while_logging,
    "final figures": _before(_runner, "run_facts"),
}


def differences(whole: Path, continued: Path) -> list[str]:
    """What two runs have left that is not the same, bit for bit: all but names of folders and times."""
    found: list[str] = []
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (_state(torch.load(run / "checkpoints" / name, weights_only=True)) for run in (whole, continued))
        found += [f"{name}{where}" for where in _differing(a, b)]
    a, b = (_summary(run) for run in (whole, continued))
    found += [f"summary.json{where}" for where in _differing(a, b)]
    a, b = (load_file(run / "backbone.safetensors") for run in (whole, continued))
    found += [f"backbone.safetensors{where}" for where in _differing(a, b)]
    a, b = (_rows(run) for run in (whole, continued))
    found += [f"metrics.csv: {row}" for row in a + b if a.count(row) != b.count(row)]
    return found


def _state(stored: dict[str, Any]) -> dict[str, Any]:
    stored.pop("selfdistill")
    for name, state in stored["callbacks"].items():
        if name.startswith("BestCheckpoint"):
            stored["callbacks"][name] = {"best": state["best_model_score"], "current": state["current_score"]}
    return stored


def _summary(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    told = {key: value for key, value in summary.items() if key not in ("seconds", "continued")}
    return told | {"cost": summary["cost"]["predicted"]}


def _rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if v and k != f"monitor/{NOT_STORED}"} for row in csv.DictReader(file)]


def _differing(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = ({key: value for key, value in side.items() if key != NOT_STORED} for side in (a, b))
        odd = [f"{where}/{key} in one only" for key in a.keys() ^ b.keys()]
        return odd + [line for key in a.keys() & b.keys() for line in _differing(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [line for i in range(len(a)) for line in _differing(a[i], b[i], f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a!r}, {b!r}"[:200]]
