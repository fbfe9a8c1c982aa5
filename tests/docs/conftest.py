"""Files that the pages tell a reader to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from read_pages import blocks


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages tell a reader to write."""
    folder = tmp_path_factory.mktemp("written")
    for block in [*blocks("yaml"), *blocks("python")]:
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
    return folder
