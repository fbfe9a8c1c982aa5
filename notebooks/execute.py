"""Execute notebooks and keep their outputs: ``python notebooks/execute.py notebooks/0*.ipynb``."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> nbformat.NotebookNode:
    """The executed notebook; its metadata say in ``execution`` what that took.

    ``seconds`` is the time that went by, ``cpu_seconds`` the work of the kernel and of every process that it started:
    on a machine that others use too, the first says little.
    """
    notebook = nbformat.read(path, 4)
    started, before = time.monotonic(), _worked()
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}}).execute()
    seconds, worked = time.monotonic() - started, _worked() - before
    notebook.metadata["execution"] = {"seconds": round(seconds, 1), "cpu_seconds": round(worked, 1)}
    return notebook


def _worked() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        executed = execute(Path(argument))
        nbformat.write(executed, argument)
        print(argument, executed.metadata["execution"])
