"""Finding a job's run again, by its whole resolved configuration."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from selfdistill.config.repeat import relocatable

_PLACE = "<run>"


@dataclass(frozen=True)
class Found:
    """A run with a job's configuration.

    Attributes:
        name: of its folder.
        finished: it came to its end.
    """

    name: str
    finished: bool


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
    folders = sorted(file.parent for file in sweep.glob("*/config.yaml"))
    found = [Found(f.name, (f / "summary.json").is_file()) for f in folders if stored_identity(f) == wanted]
    return next((run for run in found if run.finished), found[0] if found else None)


def new_name(sweep: Path, number: int) -> str:
    """A folder that did not exist, made: that of the job's number where it is free."""
    while True:
        name = f"{number:03d}"
        try:
            (sweep / name).mkdir(parents=True)
            return name
        except FileExistsError:
            number += 1


def _digest(text: str) -> str:
    plain = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(plain, dict) or not isinstance(plain.get("run_dir"), str):
        raise ValueError("not the configuration of a run")
    plain = relocatable(plain, plain["run_dir"])
    kept = {key: value for key, value in plain.items() if key not in ("run_dir", "ckpt_path")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
