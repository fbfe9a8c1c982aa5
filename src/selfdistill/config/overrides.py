"""The command line itself: what is wrong with it, or has no meaning to Hydra, whatever the configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from selfdistill.config.errors import UserError, shown

CONF = Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    """The choices of a group of this package; none where it is no group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def split(overrides: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Keys that are given values, and (group, override) of those that choose one."""
    values, groups = [], []
    for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = parsed.key_or_group.lstrip("+~")
        if (CONF / key).is_dir() or key.startswith("hydra"):
            groups.append((key, text))
        else:
            values.append(key)
    return values, groups


def given_keys() -> list[str]:
    """The keys that the command that runs gives a value; none where Hydra runs no command."""
    return split(HydraConfig.get().overrides.task)[0] if HydraConfig.initialized() else []


def without_nulls(config_name: str, overrides: Sequence[str]) -> list[str]:
    """``overrides`` without ``group=null`` where that is the default: Hydra has no such choice."""
    file = CONF / f"{config_name}.yaml"
    stated: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    entries = [entry for entry in stated.get("defaults", ()) if isinstance(entry, dict)]
    empty = {f"{group}=null" for entry in entries for group, choice in entry.items() if choice is None}
    return [text for text in overrides if text not in empty]


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse lists of choices that cannot be meant, and what Hydra takes for the name of a logger.

    Raises:
        UserError: naming the group and what is allowed.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:  # composing says what is wrong
        return
    for override in parsed:
        key, value = override.key_or_group, _value(override)
        if key == "hydra.verbose":
            _check_verbose(value)
        elif isinstance(value, list) and (allowed := choices(key)):
            for name in value:
                if not isinstance(name, str):
                    raise UserError(f"{key}: {shown(name)} given in a list, allowed is {', '.join(allowed)}")
                if value.count(name) > 1:
                    raise UserError(f"{key}: {name} given {value.count(name)} times, allowed is each choice once")


def _value(override: Override) -> Any:
    return None if override.is_sweep_override() or override.is_delete() else override.value()


def _check_verbose(value: Any) -> None:
    for name in value if isinstance(value, list) else [value]:
        package = name.partition(".")[0] if isinstance(name, str) else ""
        if not isinstance(name, bool) and not (package.isidentifier() and _is_there(package)):
            raise UserError(
                f"hydra.verbose: {shown(name)} given, allowed is true, false or what logs: selfdistill, lightning, "
                "hydra or another package"
            )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # __main__ has no spec
        return False
