"""Griffe extension: docstrings in Markdown, where the source has Sphinx's roles."""

from __future__ import annotations

from typing import Any

import griffe
from generate.docstrings import plain


class Roles(griffe.Extension):
    def on_instance(self, *, obj: Any, **others: Any) -> None:
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
