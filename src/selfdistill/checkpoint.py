"""Reading checkpoints that a user names: nothing in them is run, and what does not fit is said in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from selfdistill.config import UserError, flatten
from selfdistill.methods import SelfDistillModule

# The groups of a stored configuration from which objects are made.
_BUILT = ("backbone", "data", "divergence", "method", "objective", "optimizer", "teacher", "views", "weights")


def foreign_target(config: Mapping[str, Any]) -> str | None:
    """The first class or function of another package that building this stored configuration would call."""
    found = (name for part in _BUILT for name in _targets(config.get(part)) if not name.startswith("selfdistill."))
    return next(found, None)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from _targets(value)


def checked_checkpoint(path: str, module: SelfDistillModule[Any, Any]) -> str:
    """``path``, once it is known to continue ``module``.

    Raises:
        UserError: it is missing, unreadable, or of something else; the line says what differs.
    """
    stored = read_checkpoint("ckpt_path", path)
    method, wanted = stored["selfdistill"]["method"], type(module).__name__
    if method != wanted:
        raise UserError(f"ckpt_path: a checkpoint of {method} given, this run is {wanted}")
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
    ours, theirs_config = module.provenance.get("config", {}), stored["selfdistill"]["config"]
    name, was = ours.get("optimizer", {}).get("name"), theirs_config.get("optimizer", {}).get("name")
    if name != was:
        raise UserError(f"optimizer.name: {name} given, the checkpoint holds the state of {was}; continue with {was}")
    last = module.provenance.get("config", {}).get("trainer", {}).get("max_epochs") or -1
    if 0 < last <= stored["epoch"]:
        raise UserError(f"trainer.max_epochs: {last} given, the checkpoint is in epoch {stored['epoch'] + 1} already")
    _say_what_changed(ours, theirs_config)
    return path


def _say_what_changed(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    mine, stored = dict(flatten(ours)), dict(flatten(theirs))
    own = ("run_dir", "ckpt_path", "callbacks.", "logger.", "trainer.", "evaluation.")
    changed = [
        f"{key} {stored.get(key)} -> {mine.get(key)}"
        for key in {**stored, **mine}
        if not key.startswith(own) and stored.get(key) != mine.get(key)
    ]
    if changed:
        print(
            f"warning: not a continuation of the same run, {', '.join(changed)}; learning rates and weight decay "
            "of the optimizer stay those of the checkpoint",
            file=sys.stderr,
        )


def read_checkpoint(key: str, path: str) -> dict[str, Any]:
    """A checkpoint of ours, without running any code of it.

    Raises:
        UserError: naming ``key``: no such file, damaged, or not ours.
    """
    if not os.path.isfile(path):
        raise UserError(f"{key}: {path!r} given, no such file; allowed is <run>/checkpoints/last.ckpt")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        raise UserError(f"{key}: {path!r} given, not a readable checkpoint: damaged, or something else") from None
    if not isinstance(stored, dict) or "config" not in stored.get("selfdistill", {}):
        raise UserError(f"{key}: {path!r} given, not a checkpoint of a selfdistill run")
    return stored
