"""The built site: strict, complete, and without anything from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from generate import settings
from read_pages import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)], cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_with_its_picture_and_formula(site: Path) -> None:
    for method in settings.names():
        text = (site / "methods" / f"{method}.html").read_text(encoding="utf-8")
        assert text.count('class="flow"') == 1
        assert "<math" in text
        assert "insert " not in re.findall(r"<!--.*?-->", text)
    assert (site / "search" / "search_index.json").is_file()


def test_nothing_is_fetched(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(https?:)?//", re.IGNORECASE)
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_the_public_names(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for name in ("selfdistill.BYOL", "selfdistill.divergences.functional.kl", "selfdistill.teacher.ema_update"):
        assert f'id="{name}"' in text
    # Sphinx's roles are read as Markdown
    assert ":class:" not in text
