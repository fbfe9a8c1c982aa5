"""Public names that no page of the reference lists by hand."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from generate.docstrings import SOURCE

PAGES = Path(__file__).parents[1] / "reference"
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)


@cache
def listed() -> frozenset[str]:
    """Names that stand on the pages, without where they are imported from."""
    found = (DIRECTIVE.findall(path.read_text(encoding="utf-8")) for path in PAGES.glob("*.md"))
    return frozenset(name.rsplit(".", 1)[1] for names in found for name in names)


def others(room: str) -> str:
    """A directive for each class and function that a room's ``__all__`` has beside them; constants are left out."""
    path = SOURCE / room.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    return "\n\n".join(
        f"::: selfdistill.{room}.{name}" for name in names if name not in listed() and not name.isupper()
    )
