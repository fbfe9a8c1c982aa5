"""What a constructor takes, read from its source: nothing is imported, so torch is not, and a refusal is quick."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

# Bases whose constructors take nothing that a configuration gives.
BARE = {
    "object",
    "ABC",
    "Generic",
    "Module",
    "Callback",
    "Protocol",
    "Dataset",
    "LightningDataModule",
    "LightningModule",
}


@dataclass(frozen=True, eq=False)
class Source:
    """A parsed module: its dotted name, its file, its tree."""

    name: str
    file: Path
    tree: ast.Module


@dataclass(frozen=True)
class Parameter:
    """One argument; ``source`` is where its annotation's names are looked up."""

    annotation: ast.expr | None
    required: bool
    source: Source


@dataclass(frozen=True)
class Signature:
    """Arguments by name; ``open`` where it takes others too."""

    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    open: bool = False


@cache
def signature(target: str) -> Signature | None:
    """The signature of a class, a function or a class's method by its dotted path; None where no source is found."""
    found = find(target)
    if found is None:
        return None
    source, node = found
    if isinstance(node, ast.ClassDef):
        return _of_class(source, node)
    if isinstance(node, ast.FunctionDef):
        return _of_function(source, node)
    return None


def find(target: str) -> tuple[Source, ast.AST] | None:
    """Where ``target`` is defined: re-exports are followed, and so is a package that exports what its files hold."""
    parts = target.split(".")
    for count in range(len(parts) - 1, 0, -1):
        source = _source(".".join(parts[:count]))
        if source is not None:
            return within(source, parts[count:])
    return None


def within(source: Source, names: list[str]) -> tuple[Source, ast.AST] | None:
    """Where a name is defined that a module uses: in it, or where it imports it from."""
    first, rest = names[0], names[1:]
    for node in source.tree.body:
        if _defines(node, first):
            if not rest:
                return source, node
            members = node.body if isinstance(node, ast.ClassDef) else []
            member = next((m for m in members if _defines(m, rest[0])), None)
            return None if member is None else (source, member)
    for taken in ast.walk(source.tree):
        if isinstance(taken, ast.ImportFrom) and taken.module:
            for alias in taken.names:
                if (alias.asname or alias.name) == first:
                    return find(".".join([_absolute(source, taken), alias.name, *rest]))
    if source.file.name == "__init__.py":
        for file in sorted(source.file.parent.glob("*.py")):
            inner = _source(f"{source.name}.{file.stem}")
            if file != source.file and inner is not None and any(_defines(n, first) for n in inner.tree.body):
                return within(inner, names)
    return None


def _defines(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name == name
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.name.split(".")
    up = node.level - (source.file.name == "__init__.py")
    return ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])


@cache
def _source(name: str) -> Source | None:
    """The module of that name; importing nothing, not even the packages above it."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file = None if spec.origin in (None, "built-in", "frozen") else Path(str(spec.origin))
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    for part in rest:
        choices = [f for folder in folders for f in (folder / part / "__init__.py", folder / f"{part}.py")]
        file = next((choice for choice in choices if choice.is_file()), None)
        if file is None:
            return None
        folders = [file.parent] if file.name == "__init__.py" else []
    if file is None or file.suffix != ".py":
        return None
    try:
        return Source(name, file, ast.parse(file.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return None


def _of_class(source: Source, node: ast.ClassDef) -> Signature | None:
    constructor = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if constructor is not None:
        own = _of_function(source, constructor)
        if not own.open:
            return own
        bases = _of_bases(source, node)
        if bases is None:
            return own
        # a class of ours hands on what it does not name; what others do with it is not known
        ours = all(p.source.name.startswith("selfdistill.") for p in bases.parameters.values())
        further = {n: p if ours else replace(p, required=False) for n, p in bases.parameters.items()}
        return Signature({**further, **own.parameters}, bases.open or not (bases.parameters and ours))
    inherited = _of_bases(source, node)
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return inherited
    parameters = dict(inherited.parameters) if inherited else {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            text = ast.unparse(item.annotation)
            if "ClassVar" not in text and "KW_ONLY" not in text:
                parameters[item.target.id] = Parameter(item.annotation, item.value is None, source)
    return Signature(parameters)


def _of_bases(source: Source, node: ast.ClassDef) -> Signature | None:
    for base in node.bases:
        text = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if text.rpartition(".")[2] in BARE:
            continue
        found = within(source, text.split("."))
        if found is None or not isinstance(found[1], ast.ClassDef):
            return None
        stated = _of_class(found[0], found[1])
        if stated != Signature():  # without a constructor the next base is asked
            return stated
    return Signature()


def _of_function(source: Source, node: ast.FunctionDef) -> Signature:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    positional = [*node.args.posonlyargs, *node.args.args]
    required = len(positional) - len(node.args.defaults)
    stated = [(argument, i < required) for i, argument in enumerate(positional)]
    if positional and positional[0].arg in ("self", "cls") and "staticmethod" not in decorators:
        stated = stated[1:]
    keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    stated += [(argument, default is None) for argument, default in keywords]
    parameters = {argument.arg: Parameter(argument.annotation, needed, source) for argument, needed in stated}
    return Signature(parameters, node.args.kwarg is not None)
