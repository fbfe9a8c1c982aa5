"""What a class says of itself, read from its source: nothing is imported, so torch is not, and a refusal is quick."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from selfdistill.config.signatures import find, within

F = TypeVar("F")


def fact(target: str, name: str, make: Mapping[str, Callable[..., F]] | None = None) -> Any:
    """The value of an attribute in the body of the class ``target``, or of the nearest base that states it.

    Args:
        target: dotted path of the class, or of a class method that makes one.
        name: of the attribute.
        make: what its value may call, beside ``frozenset``.

    Returns:
        The value; None where none is stated, or another than plain values.
    """
    for node in _lineage(target):
        for item in node.body:
            named = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
            if any(isinstance(n, ast.Name) and n.id == name for n in named):
                value = getattr(item, "value", None)
                return None if value is None else _evaluated(value, {"frozenset": frozenset, **(make or {})})
    return None


def term_names(target: str) -> set[str] | None:
    """Names of the losses that a class's ``terms`` returns; None where it does not write them out."""
    for node in _lineage(target):
        terms = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "terms"), None)
        if terms is None:
            continue
        names = set()
        for given in (n.value for n in ast.walk(terms) if isinstance(n, ast.Return)):
            keys = given.keys if isinstance(given, ast.Dict) else [None]
            if not all(isinstance(key, ast.Constant) for key in keys):
                return None
            names |= {str(key.value) for key in keys if isinstance(key, ast.Constant)}
        return names
    return None


def _lineage(target: str) -> Iterator[ast.ClassDef]:
    """The class and its bases, the nearest first."""
    found = find(target)
    while found is not None and isinstance(found[1], ast.ClassDef):
        source, node = found[0], found[1]
        yield node
        bases = (ast.unparse(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases)
        homes = (within(source, base.split(".")) for base in bases)
        found = next((home for home in homes if home and isinstance(home[1], ast.ClassDef)), None)


def _evaluated(node: ast.expr, make: Mapping[str, Callable[..., Any]]) -> Any:
    try:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in make:
            keywords = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            return make[node.func.id](*map(ast.literal_eval, node.args), **keywords)
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


OWN_BACKBONES = {"small_cnn": False, "small_vit": True}
"""Whether the networks of this package, by name, have patch tokens."""


def has_tokens(name: str) -> bool | None:
    """Whether the backbone of that name has patch tokens; None where only timm can tell."""
    if name in OWN_BACKBONES:
        return OWN_BACKBONES[name]
    home = next((text for text in _timm() if name.partition(".")[0] in _networks(text)), None)
    return False if home is not None and "VisionTransformer" not in home else None


def near_backbones(name: str) -> list[str] | None:
    """The known names that are nearest to one that there is not; None where there is one, or no telling."""
    texts = _timm()
    base = name.partition(".")[0]
    # deprecated names stand as texts beside the networks that took their place
    if not texts or name in OWN_BACKBONES or any(re.search(rf"\b{re.escape(base)}\b", text) for text in texts):
        return None
    known = {network for text in texts for network in _networks(text)}
    return difflib.get_close_matches(name, sorted(known | set(OWN_BACKBONES)), n=3)


@cache
def _timm() -> tuple[str, ...]:
    """The sources of timm's models."""
    spec = importlib.util.find_spec("timm")
    folders = [Path(place) / "models" for place in (spec and spec.submodule_search_locations) or ()]
    return tuple(file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))


@cache
def _networks(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE))
