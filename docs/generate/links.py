"""Links that are right in the repository, made right on the site."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# files outside of docs/ that have a page
PAGES = {
    "benchmarks/RESULTS.md": "results.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def moved(markdown: str, source: str, page: str) -> str:
    """``markdown`` of the file ``source`` of the repository, shown as ``page`` of the site.

    Links to files with a page lead there, those to other files of the repository are their text.
    """

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found.groups()
        target = os.path.normpath(os.path.join(os.path.dirname(source), path))
        if not (ROOT / target).exists():
            return found[0]
        place = target.removeprefix("docs/") if target.startswith("docs/") else PAGES.get(target)
        if place is None or (ROOT / target).is_dir():
            return text
        return f"[{text}]({os.path.relpath(place, os.path.dirname(page) or '.')}{anchor or ''})"

    return _LINK.sub(link, markdown)
