"""Formulas: a block ```` ```math ```` of LaTeX becomes MathML, which browsers draw by themselves."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def fence(source: str, language: str, css_class: str, options: dict[str, Any], md: Any, **others: Any) -> str:
    """A custom fence of pymdownx.superfences; every line is a formula of its own."""
    lines = [line for line in source.splitlines() if line.strip()]
    return '<div class="formula">' + "".join(convert(line, display="block") for line in lines) + "</div>"
