"""Reading checkpoints that a user names: nothing in them is run, and what does not fit is said in one line."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from selfdistill.checkpoint_io import PREVIOUS
from selfdistill.config import UserError

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


def read_checkpoint(key: str, path: str) -> dict[str, Any]:
    """A checkpoint of ours, without running any code of it; its checksums are tested, which ``torch.load`` leaves out.

    Raises:
        UserError: naming ``key``: no such file, damaged, or not ours.
    """
    if not os.path.isfile(path):
        raise UserError(f"{key}: {path!r} given, no such file; allowed is <run>/checkpoints/last.ckpt")
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise zipfile.BadZipFile(bad)
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        raise UserError(f"{key}: {path!r} given, not a readable checkpoint: damaged, or something else") from None
    about = stored.get("selfdistill") if isinstance(stored, dict) else None
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise UserError(f"{key}: {path!r} given, not a checkpoint of a selfdistill run")
    return stored


def newest_readable(
    paths: Sequence[Path], read: Callable[[Path], dict[str, Any]], then: str
) -> tuple[Path, dict[str, Any], str | None]:
    """The first of ``paths``, the newest before the one before it, that ``read`` takes.

    Args:
        paths: one or two.
        read: gives what is in a file; its UserError is that the next one is to be tried.
        then: what is done with the one before, for the warning.

    Returns:
        The path, what is in it, and a warning where it is not the newest.

    Raises:
        UserError: of the newest that is there, if none can be read.
    """
    refused: list[UserError] = []
    for path in [path for path in paths if path.exists()] or paths[:1]:
        try:
            stored = read(path)
        except UserError as error:
            refused.append(error)
            continue
        if path == paths[0]:
            return path, stored, None
        why = refused[0] if refused else f"{paths[0]} is missing"
        return path, stored, f"warning: {why}; {then} the one before it, {path}, step {stored.get('global_step')}"
    also = f"; {PREVIOUS} neither" if len(refused) > 1 else ""
    raise UserError(f"{refused[0]}{also}")
