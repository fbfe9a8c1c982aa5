"""MkDocs calls these: formulas become MathML, marks become tables and pictures, names link to the reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from generate import expand, formula, links, reference
from mkdocs.exceptions import PluginError

_NAME = re.compile(r"(?<!\[)`(selfdistill\.[\w.]+)`")
# sections that take every page of a folder, those that mkdocs.yml does not name after the others
_OPEN = {"Concepts": "concepts", "Methods": "methods", "How to": "how_to"}


def on_config(config: Any) -> Any:
    fences = {"name": "math", "class": "formula", "format": formula.fence}
    for section, folder in _OPEN.items():
        _complete(config["nav"], section, folder, Path(config["docs_dir"]))
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fences]
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    try:
        markdown = links.moved(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
        markdown = expand(markdown, Path(page.file.src_uri).stem, page.meta)
    except ValueError as error:
        raise PluginError(str(error)) from None
    pages = Path(config["docs_dir"], "reference").glob("*.md")
    known = {name for path in pages for name in reference.DIRECTIVE.findall(path.read_text(encoding="utf-8"))}
    return _NAME.sub(lambda m: f"[`{m[1].rsplit('.', 1)[1]}`][{m[1]}]" if m[1] in known else m[0], markdown)


def _complete(nav: list[Any], section: str, folder: str, docs: Path) -> None:
    entries = next(entry[section] for entry in nav if section in entry)
    named = {entry if isinstance(entry, str) else next(iter(entry.values())) for entry in entries}
    paths = (path.relative_to(docs).as_posix() for path in sorted((docs / folder).glob("*.md")))
    entries += [path for path in paths if path not in named]
