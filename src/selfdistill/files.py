"""Files that are whole or not there: written under a temporary name, then moved."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

LOG = "train.log"
"""What Hydra logs into in a run's folder."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, moved to ``path`` at the end and removed after an error.

    Its suffix is that of ``path``, since some writers choose their format by it. An older file is replaced. Folders
    that are made for it go with it after an error.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"part-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, moved to ``path`` at the end and removed after an error.

    Raises:
        ValueError: ``path`` exists.
    """
    if path.exists():
        raise ValueError(f"output: {path.name} exists already; choose another name or remove it")
    temporary = path.with_name(f"part-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_if_only(folder: Path, names: Collection[str]) -> None:
    """Remove ``folder``, and the one that holds it alone, where there is nothing in it but files of these names."""
    try:
        files = list(folder.iterdir())
        if all(file.name in names for file in files):
            for file in files:
                file.unlink()
        folder.rmdir()
        folder.parent.rmdir()
    except OSError:
        return


def write_text(path: Path, text: str) -> None:
    """``text`` as UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
