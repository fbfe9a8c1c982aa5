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
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from selfdistill.config.errors import UserError, shown
from selfdistill.config.hints import explain, first_line, missing, refused
from selfdistill.config.overrides import CONF, check_overrides, split, without_nulls
from selfdistill.config.quoting import searched
from selfdistill.config.ranges import check_values, flatten, rule_of, untypical
from selfdistill.config.schema import check_keys
from selfdistill.config.unread import BESIDE, check_read


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
    given = without_nulls(config_name, overrides)
    check_overrides(given)
    if search_path:
        given.append(searched(search_path))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = _compose(config_name, given)
        values, groups = split(given)
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
        raise UserError(f"config: {first_line(error)}") from None
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
    wanted = root is not None and not url and not paths.get("data.download") and not plain.get("cost_only")
    if wanted and not Path(str(root)).is_dir():
        fetched = ", or data.download=true fetches them into it" if "data.download" in paths else ""
        raise UserError(f"data.root: {root!r} given, no such folder; give the folder that holds the images{fetched}")


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(config_name, overrides=list(overrides))
    except MissingConfigException as error:
        raise UserError(missing(error)) from None
    except HydraException as error:
        raise UserError(explain(config_name, overrides, error)) from None
    except (YAMLError, OSError) as error:
        raise UserError(f"config: a file is not readable as key: value ({' '.join(str(error).split())})") from None
    except (ValueError, OmegaConfBaseException) as error:  # a group without a choice; a value that its key refuses
        raise UserError(refused(overrides, error)) from None


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
