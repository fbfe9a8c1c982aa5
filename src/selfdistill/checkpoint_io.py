"""Writing checkpoints so that there is a whole one at any moment, whatever kills the process or fills the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from selfdistill.files import whole_file

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, brings it to the disk, then moves it into place; ``last.ckpt`` becomes ``previous.ckpt``.

    A checkpoint that cannot be written (disk full, quota, no permission) costs a line, not the run: the one before it
    stays as it is, and training goes on, for the next save may work. Whoever needs to know asks :attr:`failed`. The
    generation before is kept by a hard link, so nothing is copied. Addresses of object stores (``s3://…``) go to
    Lightning's own writer.

    Attributes:
        failed: why the newest save of a file did not happen, by its path; a save that works takes it out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[Path, str] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            with whole_file(target) as temporary:
                with open(temporary, "wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == LAST and target.exists():
                    _keep(target, target.with_name(PREVIOUS))
            _sync(target.parent)
        except (OSError, RuntimeError) as error:
            # torch turns what the file says into an error of its own, which names no reason
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            self.failed[target] = cause.strerror or str(cause)
            then = "the last good one stays" if target.exists() else "there is none yet"
            print(f"warning: {target} was not written ({self.failed[target]}); {then}, going on", file=sys.stderr)
        else:
            self.failed.pop(target, None)


def _keep(path: Path, name: Path) -> None:
    """Give the file ``path`` the second name ``name``, in which it replaces another file."""
    temporary = name.with_name(f"part-{name.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        path.replace(name)  # no hard links here: for a moment there is the previous one alone
        return
    temporary.replace(name)
    # a rename between two names of one file does nothing
    temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
