"""Tables and sections of the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape, unescape


def section(title: str, content: str, look: str = "") -> str:
    """A headed part of the page, with a sentence that says what to look for; empty without content."""
    said = f"<p class=look>{escape(look)}</p>" if look else ""
    return f"<section><h2>{title}</h2>{said}{content}</section>" if content else ""


def plain(text: str) -> str:
    """HTML as plain text, an index after an underscore: for tables that are no HTML."""
    return unescape(re.sub(r"<[^>]*>", "", text.replace("<sub>", "_")))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """Of plain text; the first cell of each row is its head."""
    return cells([escape(head) for head in heads], [[escape(cell) for cell in row] for row in rows], numbers=numbers)


def cells(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table of cells that are HTML; the first of each row is its head."""
    top = f"<thead><tr>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead>" if heads else ""
    lines = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    kind = " class=numbers" if numbers else ""
    return f"<div class=scroll tabindex=0><table{kind}>{top}<tbody>{lines}</tbody></table></div>"
