"""Every key of a configuration is known and of the right type.

The schema is the code itself: a mapping with a ``_target_`` takes what that constructor takes, of the types of its
annotations; any other mapping takes what the files of this package state there.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfdistill.config.errors import UserError, nearest, shown
from selfdistill.config.hints import elsewhere
from selfdistill.config.kinds import Kind, Kinds, allows, described, kinds_of
from selfdistill.config.overrides import CONF, choices
from selfdistill.config.ranges import flatten, rule_of
from selfdistill.config.signatures import Signature, find, signature
from selfdistill.config.unread import BESIDE, HYDRA, used

# Arguments that other groups give: a value here would be overwritten.
_GIVEN: dict[str, dict[str, str]] = {
    "method": {
        "backbone": "backbone",
        "divergence": "divergence",
        "teacher": "teacher",
        "optimizer": "optimizer",
        "weights": "weights",
        "objectives": "objective",
    },
    "data": {"recipe": "views", "seed": "seed"},
    "teacher": {"network": "teacher.checkpoint"},
    "trainer": {"callbacks": "callbacks", "logger": "logger", "overfit_batches": "data.limit"},
}
# Groups of things with names of their own; and a mapping of the names of loss terms.
_NAMED = {"callbacks", "logger", "objective", "protocol"}
_FREE = {"weights"}
# Filled by groups, and read where another key names them.
_NOTES = ("scale", "method.paper", "schedule")


def check_keys(
    config: DictConfig,
    plain: Mapping[str, Any],
    reference: Mapping[str, Any],
    mandatory: Collection[str],
    removed: Collection[str] = (),
) -> None:
    """Refuse unknown keys, wrong types and what is missing.

    Args:
        config: what was composed, unresolved.
        plain: the same, resolved.
        reference: of this package's files alone: the same choices of groups without values.
        mandatory: keys that a command cannot do without.
        removed: groups that the command takes away; another file may still have put a key there.

    Raises:
        UserError: naming the key, and the nearest one or what is allowed.
    """
    for key in mandatory:
        if key not in plain or key in removed or (plain[key] is None and isinstance(reference.get(key), Mapping)):
            what = f"give {key}=<name>, of {', '.join(named)}" if (named := choices(key)) else "leave it as it is"
            raise UserError(f"{key}: taken away or null, but it is read; {what}")
    # the keys of the Trainer are read by name, before it is built
    for key in reference.get("trainer") or {}:
        if isinstance(trainer := plain.get("trainer"), Mapping) and key not in trainer:
            raise UserError(f"trainer.{key}: taken away, but it is read; leave it as it is, or give it a value")
    _mapping("", plain, reference, _Composed(config, [path for path, _ in flatten(plain)]))


class _Composed:
    """What a refusal and a key of the user's own are judged by."""

    def __init__(self, config: DictConfig, known: list[str]) -> None:
        self.config = config
        self.known = known

    def unknown(self, path: str, beside: Collection[str]) -> UserError:
        if path in ("experiment", "hparams_search", "debug"):
            return UserError(f"{path}: the file has to begin with the line '# @package _global_', or nothing reads it")
        prefix = path.rpartition(".")[0]
        siblings = [f"{prefix}.{name}" if prefix else name for name in beside]
        near = elsewhere(path) or nearest(path, siblings) or nearest(path, [p for p in self.known if p != path])
        return UserError(f"{path}: no such key{near}; all keys: --cfg job")


def _mapping(
    prefix: str, node: Mapping[str, Any], reference: Any, composed: _Composed, *, argument: bool = False
) -> None:
    """A mapping; as (part of) an argument of a constructor it is free, but for what is constructed inside."""
    known = reference if isinstance(reference, Mapping) else {}
    target = node.get("_target_")
    if isinstance(target, str):
        _constructed(prefix, node, target, known, composed)
        return
    if "_target_" in known and not argument and node:  # an empty one is a choice, divergence=auto
        raise UserError(f"{prefix}_target_: {shown(target)} given or taken away, but it says what is made; leave it")
    notes = _noted() if any(prefix.startswith(f"{note}.") for note in _NOTES) else set()
    for key, value in node.items():
        path = f"{prefix}{key}"
        if argument:
            _inside(path, value, None, composed, argument=True)
            continue
        named = prefix.rstrip(".") in _NAMED and (value is None or (isinstance(value, Mapping) and "_target_" in value))
        if key not in known and not named and f"{prefix}{key}" not in notes and not used(composed.config, path):
            if prefix.rstrip(".") in _NAMED and not isinstance(value, Mapping):
                raise UserError(f"{path}: {shown(value)} given, allowed is an object ({{_target_: …}}), or null")
            beside = {*known, *(note.rpartition(".")[2] for note in notes if note.rpartition(".")[0] == prefix[:-1])}
            raise composed.unknown(path, beside)
        if path in _FREE:
            _weights(path, value)
            _inside(path, value, None, composed, argument=True)
            continue
        nothing = value is None and not isinstance(known.get(key), list | bool | int | float)
        if key in known and not nothing and prefix.rstrip(".") not in _NOTES and path not in _NOTES:
            _same_type(path, value, known[key])
        _inside(path, value, known.get(key), composed)


def _constructed(
    prefix: str, node: Mapping[str, Any], target: str, known: Mapping[str, Any], composed: _Composed
) -> None:
    if "_args_" in node:
        raise UserError(f"{prefix}_args_: not taken; name the arguments")
    group = prefix.rstrip(".")
    found = signature(target)
    if found is None:
        if target.startswith("selfdistill."):
            raise UserError(f"{prefix}_target_: {target!r} given, no such name in this package")
        found = Signature(open=True)
    given = _GIVEN.get(group, {})
    beside = BESIDE.get(group, set()) | ({"weight"} if group.startswith("objective.") else set())
    for key, value in node.items():
        path = f"{prefix}{key}"
        if key in given and key in found.parameters:
            raise UserError(f"{path}: {shown(value)} given, but it comes from {given[key]}; set {given[key]}=…")
        parameter = found.parameters.get(key)
        if parameter is not None:
            kinds = kinds_of(parameter)
            ranged = rule_of(path) is not None and not isinstance(value, Mapping)
            if not ranged and not allows(kinds, value) and not _returned(value):
                raise UserError(
                    f"{_origin(composed.config, path)}: {shown(value)} given, allowed is {described(kinds)}"
                )
        elif key in beside and isinstance(known.get(key), bool | int | float):
            _same_type(path, value, known[key])
        elif key not in HYDRA | beside and not used(composed.config, path):
            beside_it = {*found.parameters, *beside} - set(given)
            if not found.open or difflib.get_close_matches(key, beside_it, cutoff=0.85):
                raise composed.unknown(path, beside_it)
        _inside(path, value, known.get(key), composed, argument=parameter is not None or found.open)
    missing = [n for n, p in found.parameters.items() if p.required and n not in node and n not in given]
    if missing and not node.get("_partial_") and not (group == "method" or group.startswith("method.heads")):
        raise UserError(f"{prefix}{missing[0]}: not given, and {target.rpartition('.')[2]} has no default for it")


def _inside(path: str, value: Any, known: Any, composed: _Composed, *, argument: bool = False) -> None:
    if isinstance(value, Mapping):
        _mapping(f"{path}.", value, known, composed, argument=argument)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            like = known[min(i, len(known) - 1)] if isinstance(known, list) and known else None
            if isinstance(item, Mapping):
                _mapping(f"{path}.{i}.", item, like, composed, argument=argument)


def _weights(path: str, value: Any) -> None:
    kinds: Kinds = (Kind("float"), Kind("object", values=("schedule",)))
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: {shown(value)} given, allowed is a mapping of terms, each to {described(kinds)}")
    for term, weight in value.items():
        ranged = rule_of(f"{path}.{term}") is not None and not isinstance(weight, Mapping)
        if not ranged and not allows(kinds, weight):
            raise UserError(f"{path}.{term}: {shown(weight)} given, allowed is {described(kinds)}")


def _same_type(path: str, value: Any, like: Any) -> None:
    """A value without a constructor is of the type of its default; None has none."""
    unknown = like is None or (isinstance(like, str) and like.startswith(("${", "???")))
    if unknown or rule_of(path) is not None:
        return
    kinds: dict[type, Kinds] = {
        bool: (Kind("bool"),),
        int: (Kind("int"),),
        float: (Kind("float"),),
        str: (Kind("str"),),
    }
    if isinstance(like, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}: {shown(value)} given, allowed is a mapping: {', '.join(map(str, like)) or '{}'}")
    elif isinstance(like, list):
        if not isinstance(value, list):
            raise UserError(f"{path}: {shown(value)} given, allowed is a list, as {like}")
        for item in value if like else []:
            _same_type(path, item, like[0])
    elif not allows(kinds[type(like)], value):
        raise UserError(f"{path}: {shown(value)} given, allowed is {described(kinds[type(like)])}, as {shown(like)}")


def _origin(config: DictConfig, path: str) -> str:
    """The key that gives ``path`` its value, where it only repeats another one."""
    try:
        parent, _, name = path.rpartition(".")
        raw = OmegaConf.to_container(OmegaConf.select(config, parent), resolve=False)
        found = re.fullmatch(r"\$\{([\w.]+)\}", str(raw.get(name))) if isinstance(raw, dict) else None
    except (OmegaConfBaseException, ValueError, TypeError):
        return path
    return found[1] if found else path


def _returned(value: Any) -> bool:
    """Whether ``value`` is what a function makes, of whatever type: a class makes itself."""
    if not (isinstance(value, Mapping) and isinstance(value.get("_target_"), str)):
        return False
    found = find(value["_target_"])
    return found is None or not isinstance(found[1], ast.ClassDef)


@cache
def _noted() -> set[str]:
    """Keys of ``scale`` and ``method.paper`` that a file of the package names, and the batch, for the record."""
    texts = [file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml")]
    found = {name for text in texts for name in re.findall(r"((?:scale|method\.paper)(?:\.\w+)+)", text)}
    return found | {name.rpartition(".")[0] for name in found} | {"method.paper.batch_size"}
