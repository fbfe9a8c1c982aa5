"""Composing and checking a configuration before anything is made: no torch, no folder, one line an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from selfdistill.config.errors import UserError, nearest, shown
from selfdistill.config.quoting import searched
from selfdistill.config.ranges import check_values, flatten, rule_of, untypical
from selfdistill.config.schema import check_keys
from selfdistill.config.signatures import signature
from selfdistill.config.unread import BESIDE, check_read

CONF = Path(__file__).parents[1] / "conf"


@dataclass
class Checked:
    """A composed configuration, resolved, and what should be said about it."""

    config: DictConfig
    plain: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def check(config_name: str, overrides: Sequence[str], *, search_path: Sequence[str] = (), conf: Path = CONF) -> Checked:
    """Compose ``config_name`` with ``overrides`` and check every value that can be checked without data.

    Raises:
        UserError: what the user gave cannot work.
    """
    given = list(overrides)
    if search_path:
        given.append(searched(search_path))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = _compose(config_name, given)
        values, groups = _split(given)
        shipped = tuple(text for group, text in groups if _shipped(group, text))
        # where nothing is the user's own the composed configuration is its own reference: composing takes long
        reference = _stated(config) if len(shipped) == len(given) else _reference(conf, config_name, shipped)
        _check_mappings(config, reference, values)
        plain = resolved(config)
        removed = {group for group, text in groups if text.startswith("~")}
        check_keys(config, plain, reference, mandatory=_reference(conf, config_name, ()), removed=removed)
        check_values(plain)
        check_paths(plain)
        warnings = check_read(config, plain, values, {group: text.partition("=")[2] for group, text in groups})
        leaves, stated = dict(flatten(plain)), dict(flatten(reference))
        warnings += untypical(plain, [key for key in values if rule_of(key) and leaves.get(key) != stated.get(key)])
    return Checked(config, plain, warnings)


@contextmanager
def hydra_kept() -> Iterator[None]:
    """:func:`check` inside of a command that Hydra runs, whose state composing would clear."""
    around = GlobalHydra.instance().hydra
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = around


def _check_mappings(config: DictConfig, reference: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuse anything else in the place of a mapping, which other keys may look into.

    An argument of a constructor is left to the constructor's type: a number may stand where a schedule does.
    """
    for key in keys:
        default: Any = reference
        holder: Mapping[str, Any] = {}
        for name in key.split("."):
            default, holder = (default.get(name), default) if isinstance(default, Mapping) else (None, {})
        value = OmegaConf.select(config, key)
        group, _, name = key.rpartition(".")
        argument = "_target_" in holder and name not in BESIDE.get(group, ())
        if isinstance(default, Mapping) and default and not argument and not OmegaConf.is_dict(value):
            if key.partition(".")[0] in ("callbacks", "logger", "protocol", "objective") and value is None:
                continue
            raise UserError(f"{key}: {shown(value)} given, allowed is a mapping of {', '.join(default)}")


def resolved(config: DictConfig) -> dict[str, Any]:
    """``config`` as plain containers.

    Raises:
        UserError: an interpolation that leads nowhere, or a mandatory value that is missing.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"{missing[0]}: not given, and there is no default; set {missing[0]}=…")
        plain = OmegaConf.to_container(config, resolve=True)
    except InterpolationKeyError as error:
        wanted = str(error).split("'")[1]
        raise UserError(
            f"{error.full_key}: it takes {wanted}, which is not there; choose {wanted.split('.')[0]}=…"
        ) from None
    except OmegaConfBaseException as error:
        raise UserError(f"config: {_first_line(error)}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def check_paths(plain: Mapping[str, Any]) -> None:
    """Refuse files and folders that are not there.

    Raises:
        UserError: naming the key and the path.
    """
    paths = dict(flatten(plain))
    for key in ("ckpt_path", "teacher.checkpoint", "data.root"):
        if not isinstance(paths.get(key), str | None):
            raise UserError(f"{key}: {shown(paths[key])} given, allowed is a path, as text")
    for key in ("ckpt_path", "teacher.checkpoint"):
        folder = key == "ckpt_path" and (paths.get(key) == "auto" or Path(str(paths.get(key))).is_dir())
        if paths.get(key) is not None and not folder and not Path(paths[key]).is_file():
            also = ", a run's folder or auto" if key == "ckpt_path" else ""
            raise UserError(f"{key}: {paths[key]!r} given, no such file; allowed is <run>/checkpoints/last.ckpt{also}")
    root = paths.get("data.root")
    url = re.match(r"\w{2,}:", str(root))
    if root is not None and not url and not paths.get("data.download") and not Path(root).is_dir():
        raise UserError(f"data.root: {root!r} given, no such folder; give the folder that holds the images")


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(config_name, overrides=list(overrides))
    except MissingConfigException as error:
        raise UserError(_missing(error)) from None
    except HydraException as error:
        raise UserError(_explain(config_name, overrides, error)) from None
    except (YAMLError, OSError) as error:
        raise UserError(f"config: a file is not readable as key: value ({' '.join(str(error).split())})") from None
    except (ValueError, OmegaConfBaseException) as error:  # a group without a choice; a value that its key refuses
        raise UserError(_refused(overrides, error)) from None


def _paths(tree: Any, prefix: str = "") -> list[str]:
    """Every key of nested mappings and lists, inner ones too, that a user may mean."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [p for k, v in items if not str(k).startswith("_") for p in (f"{prefix}{k}", *_paths(v, f"{prefix}{k}."))]


def _missing(error: MissingConfigException) -> str:
    text = str(error)
    found = re.search(r"Could not (?:find|load) '([^']+)'", text)
    name = error.missing_cfg_file or (found.group(1) if found else "")
    group, _, choice = str(name).rpartition("/")
    options = list(error.options or [])
    if not options:
        return f"config: {_first_line(error)}"
    return f"{group}: {choice!r} given, allowed is {', '.join(options)}{nearest(choice, options)}"


def _refused(overrides: Sequence[str], error: Exception) -> str:
    for group, text in _split(overrides)[1]:
        value = text.partition("=")[2]
        allowed = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        if allowed and not value.startswith("[") and value not in allowed:
            return f"{group}: {value or 'nothing'} given, allowed is {', '.join(allowed)}"
    return f"config: {' '.join(str(error).split())}"


def _explain(config_name: str, overrides: Sequence[str], error: HydraException) -> str:
    text = str(error)
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        wanted = key.group(1)
        groups = [text for _, text in _split([o for o in overrides if not o.startswith(wanted)])[1]]
        try:
            config = OmegaConf.to_container(compose(config_name, groups), resolve=False)
        except (HydraException, OmegaConfBaseException):  # the mistake stands in a file
            hint = "; a file that overrides groups begins with the line: # @package _global_" if "@" in wanted else ""
            return f"config: {_first_line(error)}{hint}"
        if wanted.startswith("hydra"):
            return (
                f"{wanted}: no such key of Hydra's; hydra.run.dir, hydra.sweep.dir and hydra.verbose are; --hydra-help"
            )
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
        return f"{wanted}: no such key{nearest(wanted, known)}; all keys: --cfg job"
    for group, given in _split(overrides)[1] if "resolving interpolation" in text else ():
        if given.partition("=")[2].startswith("["):
            allowed = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
            return f"{group}: {given.partition('=')[2]} given, allowed is one of {allowed}; several are a sweep with -m"
    if (
        "mismatched input" in text
        or "LexerNoViableAlt" in text
        or "token recognition" in text
        or "no viable alternative" in text
    ):
        line = _first_line(error).removeprefix("LexerNoViableAltException: ")
        return f"{line}: put the value in quotes inside the argument: 'key=\"value\"'"
    if "Ambiguous value" in text:
        return f"{_first_line(error)}: several values are a sweep with -m, or a list in brackets: key=[a,b]"
    if "Error parsing override" in text:
        return f"{_first_line(error)}: give key=value"
    return _first_line(error)


def _split(overrides: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Keys that are given values, and (group, override) of those that choose one."""
    values, groups = [], []
    for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = parsed.key_or_group.lstrip("+~")
        if (CONF / key).is_dir() or key.startswith("hydra"):
            groups.append((key, text))
        else:
            values.append(key)
    return values, groups


def _shipped(group: str, text: str) -> bool:
    """Whether all that the override names is of this package."""
    names = re.findall(r"[\w.-]+", text.partition("=")[2])
    return not group.startswith("hydra") and all((CONF / group / f"{name}.yaml").is_file() for name in names)


@cache
def _reference(conf: Path, config_name: str, groups: tuple[str, ...]) -> dict[str, Any]:
    """What the files of the package say, without a value of the user's."""
    return _stated(_compose(config_name, groups))


def _stated(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split())
