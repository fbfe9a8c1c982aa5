"""Continuing a run: which checkpoint, whether it fits, what has changed since, and what comes along with it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from selfdistill import __version__
from selfdistill.callbacks.history import KEY
from selfdistill.checkpoint import newest_readable, read_checkpoint
from selfdistill.checkpoint_io import LAST, PREVIOUS
from selfdistill.config import UserError
from selfdistill.config.ranges import flatten
from selfdistill.files import whole_file
from selfdistill.methods import SelfDistillModule
from selfdistill.metrics_csv import NAME, continue_metrics

AUTO = "auto"
_FOLDER = "checkpoints"
_BEST = "best.ckpt"
_DAMAGED = "damaged.ckpt"

# Settings that change nothing of what is computed.
_SILENT = (
    "run_dir",
    "ckpt_path",
    "callbacks.",
    "logger.",
    "evaluation.",
    "trainer.accelerator",
    "trainer.default_root_dir",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
)
_SHOWN = 8


@dataclass(frozen=True)
class Continued:
    """A checkpoint that a run goes on from.

    Attributes:
        path: the file.
        stored: what is in it.
    """

    path: Path
    stored: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.stored["global_step"])

    @property
    def folder(self) -> Path:
        """The run's folder, or the one that holds a checkpoint that was copied out of its run."""
        parent = self.path.parent
        return parent.parent if parent.name == _FOLDER else parent


def find(given: str, own: Path) -> Continued | None:
    """The newest readable checkpoint of what ``ckpt_path`` names.

    Args:
        given: a file; a run's folder; or ``auto``, the folder of this very run.
        own: this run's folder.

    Returns:
        None for ``auto`` where no checkpoint was written yet.

    Raises:
        UserError: there is none, or none that can be read; nothing in the files is run.
    """
    where = own if given == AUTO else Path(given)
    if where.is_dir() or given == AUTO:
        names = [where / _FOLDER / LAST, where / _FOLDER / PREVIOUS]
    else:
        names = [where, where.with_name(PREVIOUS)] if where.name == LAST else [where]
    there = any(path.exists() for path in names)
    if not there and given == AUTO:
        return None
    if not there and where.is_dir():
        raise UserError(f"ckpt_path: {given!r} given, a folder without {_FOLDER}/{LAST}; allowed is a run or a .ckpt")
    path, stored, warning = newest_readable(names, _read, "continuing from")
    if warning is not None:
        _say(warning)
    return Continued(path, stored)


def check_fits(found: Continued, module: SelfDistillModule[Any, Any]) -> None:
    """Refuse a checkpoint that does not continue ``module``; say what differs where it does.

    Raises:
        UserError: of another method, shape or optimizer, or at its end already.
    """
    stored = found.stored
    about = stored["selfdistill"]
    method, wanted = about["method"], type(module).__name__
    if method != wanted:
        raise UserError(
            f"ckpt_path: a checkpoint of {method} given, this run is {wanted}; give the method of the checkpoint"
        )
    mine, theirs = module.state_dict(), stored["state_dict"]
    for name in [*mine, *theirs]:
        if (
            name not in theirs
            or name not in mine
            or getattr(mine[name], "shape", None) != getattr(theirs[name], "shape", None)
        ):
            raise UserError(
                f"ckpt_path: {name!r} differs between the checkpoint and this run; "
                "use the settings of the run that wrote it (its config.yaml)"
            )
    ours, before = module.provenance.get("config", {}), about["config"]
    name, was = ours.get("optimizer", {}).get("name"), before.get("optimizer", {}).get("name")
    if name != was:
        raise UserError(f"optimizer.name: {name} given, the checkpoint holds the state of {was}; continue with {was}")
    last = ours.get("trainer", {}).get("max_epochs") or -1
    if 0 < last <= stored["epoch"]:
        raise UserError(f"trainer.max_epochs: {last} given, the checkpoint is in epoch {stored['epoch'] + 1} already")
    changes = what_changed(before, ours)
    if changes:
        wrote = about.get("version")
        by = "" if wrote in (None, __version__) else f" (written by selfdistill {wrote}, this is {__version__})"
        _say(
            f"warning: not a continuation of the same run{by}, {changes}; learning rates and weight decay "
            "of the optimizer stay those of the checkpoint"
        )


def longer(trainer: Mapping[str, Any], source: Path, step: int) -> str:
    """The settings with which ``source``, a run or its checkpoint, ended at ``step``, is trained on.

    ``trainer`` has those so far.
    """
    name = "max_steps" if 0 < trainer.get("max_steps", -1) <= step else "max_epochs"
    return f"ckpt_path={source} trainer.{name}=<more than {trainer[name]}>"


def what_changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """One line on two configurations: values that differ, keys that are gone, keys that are new; empty where none."""
    theirs, ours = (
        {key: value for key, value in flatten(config) if not key.startswith(_SILENT)} for config in (before, now)
    )
    groups = {
        "": [f"{key} {theirs[key]} -> {ours[key]}" for key in theirs if key in ours and theirs[key] != ours[key]],
        "no longer known ": [f"{key}={theirs[key]}" for key in theirs if key not in ours],
        "new since ": [f"{key}={ours[key]}" for key in ours if key not in theirs],
    }
    return "; ".join(title + _listed(lines) for title, lines in groups.items() if lines)


def carry_over(found: Continued | None, own: Path) -> None:
    """Bring what was logged before the checkpoint, and ``best.ckpt`` from before it, into the run's folder.

    Args:
        found: what is continued; None for a run that begins, where nothing older may stay.
        own: this run's folder, perhaps that of the checkpoint.
    """
    if found is None:
        continue_metrics(own / NAME, own / NAME, step=0)
        return
    later = found.stored.get(KEY, {}).get("values", {})
    continue_metrics(found.folder / NAME, own / NAME, step=found.step, later=later)
    last = found.path.with_name(LAST)
    if found.path.name == PREVIOUS and found.folder == own and last.exists():
        # the next save would make it the previous one, in place of the only one that is whole
        last.replace(last.with_name(_DAMAGED))
    best, here = found.path.with_name(_BEST), own / _FOLDER / _BEST
    if here.exists() or not best.is_file():
        return
    try:
        stored = read_checkpoint("ckpt_path", str(best))
    except UserError as error:
        _say(f"warning: {error}; the best checkpoint is the best from here on")
        return
    # one that was written after the checkpoint will be made again
    if int(stored["global_step"]) <= found.step:
        with whole_file(here) as temporary:
            shutil.copyfile(best, temporary)


def _read(path: Path) -> dict[str, Any]:
    stored = read_checkpoint("ckpt_path", str(path))
    wanted = {"epoch": int, "global_step": int, "state_dict": Mapping, "callbacks": Mapping}
    absent = [name for name, kind in wanted.items() if not isinstance(stored.get(name), kind)]
    if absent or "method" not in stored["selfdistill"]:
        raise UserError(f"ckpt_path: {str(path)!r} given, it has no {[*absent, 'method'][0]}; nothing to continue")
    return stored


def _listed(lines: list[str]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr)
