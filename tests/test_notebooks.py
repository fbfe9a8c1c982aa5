"""Every notebook runs from its first cell to its last, and keeps the outputs that it was read with."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_kept_its_outputs(path: Path) -> None:
    import nbformat

    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert kinds & {"display_data", "execute_result"}
    # warnings name files of the machine that it was executed on
    assert "site-packages" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_took_under_three_minutes_on_two_cores(path: Path) -> None:
    """By what ``execute.py`` counted."""
    import nbformat

    assert 0 < nbformat.read(path, 4).metadata.execution.seconds < 180


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path) -> None:
    runpy.run_path(str(path.parent / "execute.py"))["execute"](path)
