"""The folder of a run: taking it, giving it back, what is written beside the products."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from selfdistill.config import CONF, UserError, resolved
from selfdistill.config.quoting import quoted
from selfdistill.config.repeat import relocatable
from selfdistill.files import LOG, remove_if_only, write_text
from selfdistill.provenance import provenance
from selfdistill.resume import AUTO

# Folders that this process made a run's, and the locks that it holds on folders.
_claimed: set[Path] = set()
_locks: dict[Path, int] = {}


def claim(folder: Path, config: DictConfig) -> None:
    """Write the resolved configuration and where it comes from; a folder that holds a run already is refused.

    Only ``ckpt_path=auto`` goes on in it, where no other process trains there; see :func:`release`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        if config.ckpt_path != AUTO:
            open(folder / "config.yaml", "x").close()
        _claimed.add(folder)
        stored = relocatable(resolved(config), str(folder))
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(stored)))
        write_text(folder / "provenance.json", json.dumps(provenance(), indent=2) + "\n")
    except FileExistsError:
        raise UserError(
            f"hydra.run.dir: {folder} holds a run already; choose another folder, or go on in it: ckpt_path=auto"
        ) from None
    except OSError as error:
        raise UserError(f"hydra.run.dir: {folder} cannot be written ({error.strerror}); choose another") from None


def _lock(folder: Path) -> None:
    """Refuse a folder in which another process trains; the lock goes with the process, whatever ends it."""
    if folder in _locks:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"hydra.run.dir: {folder} given, another process trains there; wait for its end, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    _locks[folder] = descriptor


def release(folder: Path) -> None:
    """Let other processes have a folder that :func:`claim` took."""
    descriptor = _locks.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def _leave_locks() -> None:
    # a loader's worker that outlives its killed parent for seconds would keep the folder
    for folder in list(_locks):
        release(folder)


os.register_at_fork(after_in_child=_leave_locks)


def continued_by(config: DictConfig, checkpoint: Path) -> str:
    """What the same command needs to go on: nothing, or `` with ckpt_path=…`` as a shell takes it."""
    if config.ckpt_path == AUTO:
        return ""
    given = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    fixed = any(text.startswith("hydra.run.dir=") and "${now" not in text for text in given)
    plain = re.fullmatch(r"[\w./-]+", str(checkpoint))
    path = f"ckpt_path={checkpoint}" if plain else shlex.quote(quoted("ckpt_path", checkpoint))
    return f" with {'ckpt_path=auto' if fixed else path}"


def remove_if_empty(folder: Path) -> None:
    """Nothing but the log and what :func:`claim` wrote in it: nothing was trained, so another try may have the folder.

    What another process wrote there, which had the folder first, stays.
    """
    remove_if_only(folder, {LOG, "config.yaml", "provenance.json"} if folder in _claimed else {LOG})


def tell_unreadable(names: list[str], file: Path) -> None:
    """A line, and the names in ``file``, where images were skipped."""
    if names:
        write_text(file, "\n".join(names) + "\n")
        print(f"{len(names):,} images cannot be read and were skipped, named in {file}; the first: {names[0]}")


def method_name(target: str) -> str | None:
    """The choice of ``method``, or, in a run that is repeated from its folder, the file that names this class."""
    if not HydraConfig.initialized():
        return None
    chosen: str | None = HydraConfig.get().runtime.choices.get("method")
    files = sorted((CONF / "method").glob("*.yaml"))
    named = (file.stem for file in files if f"_target_: {target}\n" in file.read_text(encoding="utf-8"))
    return chosen or next(named, target.rpartition(".")[2])
