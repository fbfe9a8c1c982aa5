"""What the site's pages take from code, configuration and measurements: ``<!-- insert <what> [argument] -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from generate import links, overview, picture, reference, results, settings

ROOT = Path(__file__).parents[2]
_ELSEWHERE = re.compile(r"^> In the repository: .+\n\n", re.MULTILINE)
"""Where a reader of the bare file finds what the site puts in the places of marks; the site leaves it out."""
MARK = re.compile(r"^<!-- insert (\w+)(?: (.+?))? -->$", re.MULTILINE)

Insert = Callable[[str, str, Mapping[str, Any]], str]

INSERTS: dict[str, Insert] = {
    # name, argument and front matter of the page to Markdown
    "picture": lambda name, _, meta: picture.svg(meta["picture"], name),
    "settings": lambda name, _, meta: settings.table(name, meta),
    "figures": lambda name, _, meta: results.figures(name),
    "collapses": lambda name, _, meta: results.collapses(name),
    "results": lambda _, argument, meta: results.body(argument),
    "remarks": lambda _, argument, meta: results.remarks(argument),
    "contents": lambda *_: results.contents(),
    "others": lambda _, argument, meta: reference.others(argument),
    "missed": lambda *_: results.missed(),
    "methods": lambda *_: overview.methods(),
    "file": lambda _, argument, meta: _file(argument),
}


def _file(path: str) -> str:
    """A file of the repository as a page at the top of the site."""
    return links.moved((ROOT / path).read_text(encoding="utf-8"), path, links.PAGES[path])


def expand(markdown: str, name: str, meta: Mapping[str, Any]) -> str:
    """``markdown`` of the page ``name`` with its marks replaced, and without what is for readers of the bare file.

    Raises:
        ValueError: a mark that is not known.
    """

    def insert(mark: re.Match[str]) -> str:
        what, argument = mark.groups()
        if what not in INSERTS:
            raise ValueError(f"{name}.md: insert {what} given, allowed is {', '.join(INSERTS)}")
        return INSERTS[what](name, argument or "", meta)

    return MARK.sub(insert, _ELSEWHERE.sub("", markdown))
