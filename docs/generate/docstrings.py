"""Docstrings as the pages show them, read without importing the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "selfdistill"
_ROLE = re.compile(r":\w+:`~?([^`]+)`")


def plain(text: str) -> str:
    """Markdown for what is written with Sphinx's roles and double backticks."""
    return _ROLE.sub(lambda role: f"`{role[1]}`", text).replace("``", "`")


@cache
def arguments(path: str, name: str, function: str | None = None) -> dict[str, str]:
    """Meaning of each argument of a class or of its ``function``, from the section Args or Attributes."""
    tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    if function:
        inside: list[ast.stmt] = node.body
        node = next(n for n in inside if isinstance(n, ast.FunctionDef) and n.name == function)  # type: ignore[assignment]
    text = ast.get_docstring(node) or ""
    found = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", found[1] if found else "", re.MULTILINE | re.DOTALL)
    return {key: plain(" ".join(meaning.split())) for key, meaning in entries}
