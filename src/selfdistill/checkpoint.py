"""Reading checkpoints that a user names: nothing in them is run, and what does not fit is said in one line."""

from __future__ import annotations

import os
from typing import Any

import torch

from selfdistill.config import UserError
from selfdistill.methods import SelfDistillModule


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
    return path


def read_checkpoint(key: str, path: str) -> dict[str, Any]:
    """A checkpoint of ours, without running any code of it.

    Raises:
        UserError: naming ``key``: no such file, damaged, or not ours.
    """
    if not os.path.isfile(path):
        raise UserError(f"{key}: {path!r} given, no such file; allowed is <run>/checkpoints/last.ckpt")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{key}: {path!r} given, not a readable checkpoint ({reason})") from None
    if not isinstance(stored, dict) or "config" not in stored.get("selfdistill", {}):
        raise UserError(f"{key}: {path!r} given, not a checkpoint of a selfdistill run")
    return stored
