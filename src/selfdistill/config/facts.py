"""What a class says of itself, read from its source: nothing is imported, so torch is not, and a refusal is quick.

Where the source does not say it in plain values there is no answer, and the constructor is asked later.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from selfdistill.config.signatures import BARE, Source, find, within

F = TypeVar("F")


def fact(target: str, name: str, make: Mapping[str, Callable[..., F]] | None = None) -> Any:
    """The value of an attribute of the class ``target``, from its body or from that of a base.

    Args:
        target: dotted path of the class.
        name: of the attribute.
        make: what its value may call, beside ``frozenset``.

    Returns:
        The value; None where none is stated, or another than plain values.
    """
    for node in _lineage(target):
        for item in node.body:
            if _binds(item, name):
                value = item.value if isinstance(item, ast.Assign | ast.AnnAssign) else None
                return _evaluated(value, {"frozenset": frozenset, **(make or {})})
    return None


def term_names(target: str) -> set[str] | None:
    """Names of the losses that a class's ``terms`` returns; None where it does not write them out."""
    for node in _lineage(target):
        for item in node.body:
            if _binds(item, "terms"):
                return _returned_keys(item)
    return None


def _returned_keys(function: ast.stmt) -> set[str] | None:
    """The keys of the dictionaries that a function returns, where each is written out."""
    names: set[str] = set()
    returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    for given in returns:
        keys = given.keys if isinstance(given, ast.Dict) else [None]
        for key in keys:
            if not isinstance(key, ast.Constant):
                return None
            names.add(str(key.value))
    return names or None


def _binds(item: ast.stmt, name: str) -> bool:
    """Whether a statement of a class's body gives ``name`` a value."""
    if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return item.name == name
    if isinstance(item, ast.AnnAssign) and item.value is None:
        return False
    stored = (node for node in ast.walk(item) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return any(node.id == name for node in stored)


def _lineage(target: str) -> list[ast.ClassDef]:
    """The class and its bases in the order in which Python looks into them; up to one that cannot be read."""
    found = find(target)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return []
    walked: list[ast.ClassDef | None] = list(_walk(found[0], found[1], ()))
    # a class that stands below two others is looked into after both
    order = [node for i, node in enumerate(walked) if node is None or node not in walked[i + 1 :]]
    known = order.index(None) if None in order else len(order)
    return [node for node in order[:known] if node is not None]


def _walk(source: Source, node: ast.ClassDef, below: tuple[ast.ClassDef, ...]) -> Iterator[ast.ClassDef | None]:
    """Depth first; None for a base that cannot be read, or is named as what is below it."""
    yield node
    for base in node.bases:
        text = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if text.rpartition(".")[2] in BARE:
            continue
        found = within(source, text.split("."))
        if found is None or not isinstance(found[1], ast.ClassDef) or found[1] in (node, *below):
            yield None
        else:
            yield from _walk(found[0], found[1], (node, *below))


def _evaluated(node: ast.expr | None, make: Mapping[str, Callable[..., Any]]) -> Any:
    try:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in make:
            keywords = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            return make[node.func.id](*map(ast.literal_eval, node.args), **keywords)
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
