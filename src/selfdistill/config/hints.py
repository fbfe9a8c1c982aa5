"""What Hydra could not compose, in one line that says what would work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra import compose
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigIndexError, OmegaConfBaseException

from selfdistill.config.errors import nearest
from selfdistill.config.overrides import CONF, choices, split
from selfdistill.config.signatures import signature


def missing(error: MissingConfigException) -> str:
    """A choice that its group does not have."""
    text = str(error)
    found = re.search(r"Could not (?:find|load) '([^']+)'", text)
    name = error.missing_cfg_file or (found.group(1) if found else "")
    group, _, choice = str(name).rpartition("/")
    options = list(error.options or choices(group))
    if not options:
        return f"config: {first_line(error)}"
    return f"{group}: {choice!r} given, allowed is {', '.join(options)}{nearest(choice, options)}"


def refused(overrides: Sequence[str], error: Exception) -> str:
    """A value that a group or a key cannot have."""
    for group, text in split(overrides)[1]:
        value = text.partition("=")[2]
        allowed = choices(group)
        if allowed and not value.startswith("[") and value not in allowed:
            return f"{group}: {value or 'nothing'} given, allowed is {', '.join(allowed)}"
    return f"config: {' '.join(str(error).split())}"


def explain(config_name: str, overrides: Sequence[str], error: HydraException) -> str:
    """Anything else."""
    text, cause = str(error), error.__cause__
    if not text and isinstance(cause, OmegaConfBaseException):  # of a file, whose mistakes Hydra does not tell
        return f"{cause.full_key or 'config'}: {first_line(cause)}; a reference to another key is ${{key}}"
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return _no_such_key(config_name, overrides, key.group(1), error)
    for group, given in split(overrides)[1] if "resolving interpolation" in text else ():
        if given.partition("=")[2].startswith("["):
            allowed = ", ".join(choices(group))
            return f"{group}: {given.partition('=')[2]} given, allowed is one of {allowed}; several are a sweep with -m"
    if (
        "mismatched input" in text
        or "LexerNoViableAlt" in text
        or "token recognition" in text
        or "no viable alternative" in text
    ):
        line = first_line(error).removeprefix("LexerNoViableAltException: ")
        return f"{line}: put the value in quotes inside the argument: 'key=\"value\"'"
    if isinstance(cause, ConfigIndexError):
        return f"{first_line(error).removeprefix('Error merging override ')}: no such place in the list; see --cfg job"
    if "Ambiguous value" in text:
        return f"{first_line(error)}: several values are a sweep with -m, or a list in brackets: key=[a,b]"
    if "Error parsing override" in text:
        return f"{first_line(error)}: give key=value"
    return first_line(error)


def elsewhere(key: str) -> str:
    """``; data=cifar10, folder, … have it``: other choices of the key's group that state it; nothing without any."""
    group, _, inner = key.partition(".")
    having = [f"{group}={choice}" for choice in choices(group) if inner and inner in _stated(group, choice)]
    return f"; {', '.join(having)} {'have' if having[1:] else 'has'} it" if having else ""


def first_line(error: Exception) -> str:
    """The error, but for its stack and lists of places."""
    return " ".join(str(error).split("\n")[0].split())


def _no_such_key(config_name: str, overrides: Sequence[str], wanted: str, error: HydraException) -> str:
    groups = [text for _, text in split([o for o in overrides if not o.startswith(wanted)])[1]]
    try:
        config = OmegaConf.to_container(compose(config_name, groups), resolve=False)
    except (HydraException, OmegaConfBaseException):  # the mistake stands in a file
        hint = "; a file that overrides groups begins with the line: # @package _global_" if "@" in wanted else ""
        return f"config: {first_line(error)}{hint}"
    if wanted.startswith("hydra"):
        return f"{wanted}: no such key of Hydra's; hydra.run.dir, hydra.sweep.dir and hydra.verbose are; --hydra-help"
    known = [*_paths(config), *(folder.name for folder in CONF.iterdir() if folder.is_dir())]
    if wanted in known:
        return f"{wanted}: a mapping takes its entries one by one: +{wanted}.<name>=<value>"
    parent, _, name = wanted.rpartition(".")
    holder = OmegaConf.select(OmegaConf.create(config), parent or "\0")
    found = signature(str(holder.get("_target_"))) if OmegaConf.is_dict(holder) else None
    if found and name in found.parameters:
        return f"{wanted}: not stated here; +{wanted}=<value> gives it"
    if holder == {}:
        return f"{wanted}: a new entry of a mapping is written with a plus: +{wanted}=<value>"
    return f"{wanted}: no such key{elsewhere(wanted) or nearest(wanted, known)}; all keys: --cfg job"


def _paths(tree: Any, prefix: str = "") -> list[str]:
    """Every key of nested mappings and lists, inner ones too, that a user may mean."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [p for k, v in items if not str(k).startswith("_") for p in (f"{prefix}{k}", *_paths(v, f"{prefix}{k}."))]


@cache
def _stated(group: str, choice: str) -> frozenset[str]:
    """The keys below a group that the file of a choice states, without those of files that it builds on."""
    file = CONF / group / f"{choice}.yaml"
    tree = OmegaConf.to_container(OmegaConf.load(file))
    whole = file.read_text(encoding="utf-8").startswith("# @package _global_")
    return frozenset(_paths(tree.get(group) if whole and isinstance(tree, dict) else tree))
