"""Where a run comes from: its command, the code around it, the versions and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from selfdistill import __version__

_PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "timm", "numpy")


def provenance() -> dict[str, Any]:
    """The facts of this process: ``command``, ``git`` (None outside of a repository), ``versions``, ``hardware``."""
    return {
        "command": shlex.join([sys.orig_argv[0].rpartition(os.sep)[2], *sys.orig_argv[1:]]),
        "git": _git(),
        "versions": versions(),
        "hardware": _hardware(),
    }


def versions() -> dict[str, str]:
    """Of this package, Python and what training depends on."""
    found = {"selfdistill": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, str]:
    found = {"system": platform.platform(), "processor": _processor()}
    found |= {"cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
        found["accelerators"] = ", ".join(f"{names.count(name)}× {name}" for name in dict.fromkeys(names))
    return found


def _processor() -> str:
    """The processor's name; its kind where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _git() -> dict[str, Any] | None:
    """Commit of the working directory, and whether tracked files differ from it."""
    try:
        commit = _asked("rev-parse", "HEAD")
        changed = _asked("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changed)}


def _asked(*what: str) -> str:
    done = subprocess.run(["git", *what], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
