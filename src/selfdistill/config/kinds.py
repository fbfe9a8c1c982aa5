"""What an annotation allows, and whether a value of a configuration is that."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from selfdistill.clock import ALLOWED, ALLOWED_PERIOD, check_duration, check_period
from selfdistill.config.signatures import Parameter, Source, within


@dataclass(frozen=True)
class Kind:
    """One alternative of an annotation; ``inner`` are the alternatives of what it holds."""

    name: str
    inner: tuple[tuple[Kind, ...], ...] = ()
    values: tuple[object, ...] = ()

    def allows(self, value: object) -> bool:
        made = isinstance(value, dict) and "_target_" in value
        match self.name:
            case "null":
                return value is None
            case "bool":
                return isinstance(value, bool)
            case "int":
                return isinstance(value, int) and not isinstance(value, bool)
            case "float":
                return isinstance(value, int | float) and not isinstance(value, bool)
            case "str":
                return isinstance(value, str)
            case "literal":
                return any(type(value) is type(v) and value == v for v in self.values)
            case "list":
                return isinstance(value, list) and all(allows(self.inner[0], v) for v in value)
            case "tuple":
                return (
                    isinstance(value, list)
                    and len(value) == len(self.inner)
                    and all(allows(kinds, v) for kinds, v in zip(self.inner, value, strict=True))
                )
            case "dict":
                return made or (isinstance(value, dict) and all(allows(self.inner[0], v) for v in value.values()))
            case "object":
                return made
            case "Duration" | "Period":
                return _is_length(value, period=self.name == "Period")
        return True

    def __str__(self) -> str:
        plural = [described(kinds) for kinds in self.inner]
        match self.name:
            case "literal":
                return (
                    ", ".join(str(value) for value in self.values[:-1])
                    + " or "[4 * (len(self.values) < 2) :]
                    + str(self.values[-1])
                )
            case "list":
                words = {"a number": "numbers", "a whole number": "whole numbers", "text": "texts"}
                return f"a list of {words[plural[0]]}" if plural[0] in words else f"a list, each {plural[0]}"
            case "tuple":
                return f"a list of {len(self.inner)}: {', '.join(plural)}"
            case "dict":
                return f"a mapping of names, each to {plural[0]}"
            case "object":
                return f"a {self.values[0]} ({{_target_: …}})"
        return _WORDS[self.name]


Kinds = tuple[Kind, ...]
_WORDS = {
    "null": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "any": "anything",
    "Duration": ALLOWED,
    "Period": ALLOWED_PERIOD,
}
_PLAIN = {"int": "int", "float": "float", "bool": "bool", "str": "str", "Path": "str", "None": "null"}
_LISTS = {"Sequence", "list", "List", "Iterable", "set", "frozenset", "Collection"}
_DICTS = {"Mapping", "dict", "Dict", "MutableMapping"}


def allows(kinds: Kinds, value: object) -> bool:
    """Whether ``value``, plain data, is of one of these kinds."""
    return any(kind.allows(value) for kind in kinds)


def described(kinds: Kinds) -> str:
    """What is allowed, in words."""
    names = {kind.name for kind in kinds}
    told = [kind for kind in kinds if not (kind.name == "int" and "float" in names)]
    return " or ".join(dict.fromkeys(str(kind) for kind in told))


def kinds_of(parameter: Parameter) -> Kinds:
    """The alternatives of a parameter's annotation; what cannot be told without importing is anything."""
    if parameter.annotation is None:
        return (Kind("any"),)
    return tuple(_kinds(parameter.annotation, parameter.source))


def _kinds(node: ast.expr, source: Source) -> Iterator[Kind]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _kinds(node.left, source)
        yield from _kinds(node.right, source)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield from _kinds(ast.parse(node.value, mode="eval").body, source)
        else:
            yield Kind("null" if node.value is None else "any")
    elif isinstance(node, ast.Subscript):
        yield from _generic(node, source)
    else:
        yield from _named(ast.unparse(node), source)


def _generic(node: ast.Subscript, source: Source) -> Iterator[Kind]:
    name = ast.unparse(node.value).rpartition(".")[2]
    inside = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Optional":
        yield from _kinds(inside[0], source)
        yield Kind("null")
    elif name == "Union":
        for part in inside:
            yield from _kinds(part, source)
    elif name == "Literal":
        yield Kind("literal", values=tuple(part.value for part in inside if isinstance(part, ast.Constant)))
    elif name in _LISTS or (name == "tuple" and ast.unparse(inside[-1]) == "..."):
        yield Kind("list", (tuple(_kinds(inside[0], source)),))
    elif name in ("tuple", "Tuple"):
        yield Kind("tuple", tuple(tuple(_kinds(part, source)) for part in inside))
    elif name in _DICTS and len(inside) == 2:
        yield Kind("dict", (tuple(_kinds(inside[1], source)),))
    else:
        yield Kind("any")


def _named(name: str, source: Source) -> Iterator[Kind]:
    if name.rpartition(".")[2] in _PLAIN:
        yield Kind(_PLAIN[name.rpartition(".")[2]])
        return
    found = within(source, name.split(".")) if source.name.split(".")[0] == "selfdistill" else None
    if found is None:
        yield Kind("any")
    elif found[0].name == "selfdistill.clock" and name in ("Duration", "Period"):
        yield Kind(name)
    elif isinstance(found[1], ast.ClassDef):
        yield Kind("object", values=(name,))
    elif isinstance(found[1], ast.Assign | ast.AnnAssign) and found[1].value is not None:
        yield from _kinds(found[1].value, found[0])
    else:
        yield Kind("any")


def _is_length(value: object, *, period: bool) -> bool:
    if not isinstance(value, int | float | str):
        return False
    try:
        (check_period if period else check_duration)("", value)
    except ValueError:
        return False
    return True
