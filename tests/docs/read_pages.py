"""The pages as a reader has them: their text, and what stands in fences."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

_FENCE = re.compile(
    r"^(?P<indent> *)(?:`(?P<file>[\w/.]+)`:\n\n *)?```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """What stands in a fence.

    Attributes:
        page: path of the page from the repository's root.
        line: where the fence begins.
        language: the word after the fence.
        text: what stands in it, without its indentation.
        run: False where the fence is titled "not run here".
        file: name of the file that it is, where a line above says so.
    """

    page: str
    line: int
    language: str
    text: str
    run: bool
    file: str | None


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page of the site."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[Block]:
    """The fences of one language, on all pages."""
    found = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for m in _FENCE.finditer(text):
            body = re.sub(f"^{m['indent']}", "", m["text"], flags=re.MULTILINE)
            line = text.count("\n", 0, m.start()) + 1
            run = "not run here" not in m["info"]
            found.append(Block(str(path.relative_to(ROOT)), line, m["language"], body, run, m["file"]))
    return [block for block in found if block.language == language]
