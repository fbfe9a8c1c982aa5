"""Finding a job's run again, by its whole resolved configuration."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

_PLACE = "<run>"
_PART = re.compile(r"(.+)\.part(\d+)")


@dataclass(frozen=True)
class Found:
    """A run with a job's configuration.

    Attributes:
        name: of its folder; what it left before it was interrupted stands in ``<name>.part1``, ``<name>.part2``, ….
        finished: it came to its end.
        checkpoint: continues it; None where nothing was saved.
    """

    name: str
    finished: bool
    checkpoint: Path | None


def identity(config: DictConfig) -> str:
    """A digest of all values of ``config`` but those that say where the run is and what it continues."""
    config = config.copy()
    config.run_dir = _PLACE
    return _digest(OmegaConf.to_yaml(config, resolve=True))


def stored_identity(folder: Path) -> str | None:
    """That of the run in ``folder``; None where it holds none, or half a file."""
    try:
        return _digest((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def find(sweep: Path, wanted: str) -> Found | None:
    """The run of this identity in the folder of a sweep, the finished one where there are several."""
    found = [_found(sweep, name) for name in _names(sweep) if wanted in _identities(sweep, name)]
    return next((run for run in found if run.finished), found[0] if found else None)


def make_room(sweep: Path, run: Found) -> Path | None:
    """Move what an interrupted run left aside, so that it can go on in its folder.

    Returns:
        The checkpoint that continues it, where it is now.
    """
    folder = sweep / run.name
    if not folder.exists():
        return run.checkpoint
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        # nothing of it can be continued
        shutil.rmtree(folder)
        return run.checkpoint
    aside = sweep / f"{run.name}.part{len(parts(sweep, run.name)) + 1}"
    folder.rename(aside)
    return aside / "checkpoints" / "last.ckpt"


def parts(sweep: Path, name: str) -> list[Path]:
    """What the run left before it was interrupted, in order."""
    found = [(int(match[2]), sweep / match[0]) for match in map(_PART.fullmatch, _folders(sweep)) if match]
    return [folder for _, folder in sorted(found) if folder.name.startswith(f"{name}.part")]


def new_name(sweep: Path, number: int) -> str:
    """A folder that does not exist, made: that of the job's number where it is free."""
    while True:
        name = f"{number:03d}"
        if not parts(sweep, name):
            try:
                (sweep / name).mkdir(parents=True)
                return name
            except FileExistsError:
                pass
        number += 1


def _found(sweep: Path, name: str) -> Found:
    folders = [sweep / name, *reversed(parts(sweep, name))]
    checkpoints = (folder / "checkpoints" / "last.ckpt" for folder in folders)
    saved = next((file for file in checkpoints if file.is_file()), None)
    return Found(name, (sweep / name / "summary.json").is_file(), saved)


def _identities(sweep: Path, name: str) -> set[str | None]:
    return {stored_identity(folder) for folder in (sweep / name, *parts(sweep, name))}


def _names(sweep: Path) -> list[str]:
    matches = ((_PART.fullmatch(name), name) for name in _folders(sweep))
    return sorted({match[1] if match else name for match, name in matches})


def _folders(sweep: Path) -> list[str]:
    return sorted(path.parent.name for path in sweep.glob("*/config.yaml"))


def _digest(text: str) -> str:
    plain = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(plain, dict):
        raise ValueError("not a configuration")
    place = plain.pop("run_dir", None)
    plain.pop("ckpt_path", None)
    return hashlib.sha256(json.dumps(_placeless(plain, place), sort_keys=True, default=str).encode()).hexdigest()


def _placeless(value: Any, place: str | None) -> Any:
    if isinstance(value, dict):
        return {str(key): _placeless(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [_placeless(item, place) for item in value]
    if isinstance(value, str) and place and (value == place or value.startswith(f"{place}/")):
        return _PLACE + value[len(place) :]
    return value
