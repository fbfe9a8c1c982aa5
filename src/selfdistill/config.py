"""Composing and checking a configuration before anything is made: no torch, no folder, one line an error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

CONF = Path(__file__).parent / "conf"


class UserError(CompactHydraException):
    """A mistake in what the user asked for: one line naming setting, given value, what is allowed."""


@dataclass(frozen=True)
class Range:
    """Allowed values of a number, with the mission's typical range inside it."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    whole: bool = False
    typical: tuple[float, float] | None = None
    also: tuple[int | None, ...] = ()

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        others = "".join(f", or {'null' if value is None else value}" for value in self.also)
        if self.low is not None and self.high is not None:
            return f"{kind} from {self.low} to {self.high}{others}"
        if self.low is not None:
            return f"{kind} {'above' if self.open_low else 'of at least'} {self.low}{others}"
        return f"{kind}{others}"

    def allows(self, value: Any) -> bool:
        if value in self.also and not isinstance(value, bool):
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.whole and not isinstance(value, int):
            return False
        if value != value:
            return False
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return self.high is None or value <= self.high


_TYPICAL_MOMENTUM = (0.99, 0.9999)
_TYPICAL_LR = (1e-4, 1e-3)
_TYPICAL_TEMPERATURE = (0.1, 1.0)
_TYPICAL_WEIGHT = (0.5, 2.0)

# The key's full path, as a pattern; values that are null or not plain numbers where a schedule may stand
# are left to the constructors.
RULES: dict[str, Range] = {
    r"teacher\.momentum": Range(0, 1, typical=_TYPICAL_MOMENTUM),
    r"teacher\.momentum_end": Range(0, 1, also=(None,)),
    r"optimizer\.lr": Range(0, typical=_TYPICAL_LR, also=(None,)),
    r"optimizer\.weight_decay": Range(0),
    r"(divergence|method|objective)\.(.*[._])?temperature": Range(0, open_low=True, typical=_TYPICAL_TEMPERATURE),
    r"objective\.(.*\.)?weight": Range(0, typical=_TYPICAL_WEIGHT),
    r"weights\.\w+": Range(0, typical=_TYPICAL_WEIGHT),
    r"data\.(batch_size|eval_batch_size)": Range(1, whole=True),
    r"data\.num_workers": Range(0, whole=True),
    r"student\.noise": Range(0),
    r"backbone\.drop_path": Range(0, 0.99),
    r"evaluation\.(k|draws)": Range(1, whole=True),
    r"evaluation\.temperature": Range(0, open_low=True),
    r"callbacks\.collapse_monitor\.(every|patience|rollbacks)": Range(1, whole=True),
    r"callbacks\.collapse_monitor\.rows": Range(2, whole=True),
    r"callbacks\.collapse_monitor\.thresholds\.recovery": Range(1),
    r"callbacks\.collapse_monitor\.thresholds\.[a-z]\w*": Range(0),
    r"seed": Range(0, 2**32 - 1, whole=True),
    r"trainer\.(max_epochs|max_steps)": Range(1, whole=True, also=(-1, None)),
    r"trainer\.accumulate_grad_batches": Range(1, whole=True),
    r"trainer\.log_every_n_steps": Range(1, whole=True),
}

# Keys that take one of a few values.
CHOICES: dict[str, tuple[str | bool, ...]] = {
    "accumulate": ("plain", "exact"),
    "compile": (False, True),
    "channels_last": (False, True),
    "trainer.activation_checkpointing": (False, True),
}


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
        given.append(f"hydra.searchpath=[{','.join(search_path)}]")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = _compose(config_name, given)
        plain = resolved(config)
        check_values(plain)
        check_paths(plain)
        values, groups = _split(given)
        warnings = []
        if values:
            default = _compose(config_name, groups)
            for key in plain:
                if key not in default.keys():  # noqa: SIM118 - a mandatory key is not "in" it
                    raise UserError(f"{key}: no such key{_nearest(key, [str(k) for k in default])}; nothing reads it")
            changed = [p for p, _ in values if _rule(p) and dict(flatten(plain)).get(p) != OmegaConf.select(default, p)]
            warnings = untypical(plain, changed)
    return Checked(config, plain, warnings)


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


def check_values(plain: Mapping[str, Any]) -> None:
    """Refuse values outside their allowed range.

    Raises:
        UserError: naming the key, the value and the range.
    """
    for path, value in flatten(plain):
        choices = CHOICES.get(path, ())
        if choices and (type(value), value) not in [(type(choice), choice) for choice in choices]:
            raise UserError(f"{path}: {value!r} given, allowed is {' or '.join(str(c).lower() for c in choices)}")
        rule = _rule(path)
        if rule is None or isinstance(value, dict):
            continue
        if not rule.allows(value):
            raise UserError(f"{path}: {value!r} given, allowed is {rule}")


def check_paths(plain: Mapping[str, Any]) -> None:
    """Refuse files and folders that are not there.

    Raises:
        UserError: naming the key and the path.
    """
    paths = dict(flatten(plain))
    for key in ("ckpt_path", "teacher.checkpoint"):
        folder = key == "ckpt_path" and (paths.get(key) == "auto" or Path(str(paths.get(key))).is_dir())
        if paths.get(key) is not None and not folder and not Path(paths[key]).is_file():
            also = ", a run's folder or auto" if key == "ckpt_path" else ""
            raise UserError(f"{key}: {paths[key]!r} given, no such file; allowed is <run>/checkpoints/last.ckpt{also}")
    root = paths.get("data.root")
    url = re.match(r"\w{2,}:", str(root))
    if root is not None and not url and not paths.get("data.download") and not Path(root).is_dir():
        raise UserError(f"data.root: {root!r} given, no such folder; give the folder that holds the images")


def untypical(plain: Mapping[str, Any], changed: Sequence[str]) -> list[str]:
    """A line for each key of ``changed`` whose value is allowed but outside its typical range."""
    values = dict(flatten(plain))
    warnings = []
    paper = plain.get("method", {}).get("paper", {})
    published = {"teacher.momentum": paper.get("momentum"), "optimizer.lr": paper.get("optimizer", {}).get("lr")}
    for path in changed:
        if values.get(path) == published.get(path, object()):
            continue
        rule, value = _rule(path), values.get(path)
        if rule is None or rule.typical is None or not isinstance(value, int | float):
            continue
        low, high = rule.typical
        if not low <= value <= high:
            warnings.append(f"{path}={value} is outside the typical range [{low:g}, {high:g}]; going on with it")
    return warnings


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings as (dotted path, value)."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def _rule(path: str) -> Range | None:
    return next((rule for pattern, rule in RULES.items() if re.fullmatch(pattern, path)), None)


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(config_name, overrides=list(overrides))
    except MissingConfigException as error:
        raise UserError(_missing(error)) from None
    except HydraException as error:
        raise UserError(_explain(config_name, overrides, error)) from None


def _missing(error: MissingConfigException) -> str:
    text = str(error)
    found = re.search(r"Could not (?:find|load) '([^']+)'", text)
    name = error.missing_cfg_file or (found.group(1) if found else "")
    group, _, choice = str(name).rpartition("/")
    options = list(error.options or [])
    if not options:
        return f"config: {_first_line(error)}"
    return f"{group}: {choice!r} given, allowed is {', '.join(options)}{_nearest(choice, options)}"


def _explain(config_name: str, overrides: Sequence[str], error: HydraException) -> str:
    text = str(error)
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        wanted = key.group(1)
        _, groups = _split([o for o in overrides if not o.startswith(wanted)])
        known = [path for path, _ in flatten(_compose(config_name, groups))]
        if wanted in known:
            return f"{wanted}: a mapping takes its entries one by one: +{wanted}.<name>=<value>"
        if wanted.rpartition(".")[0] in known:
            return f"{wanted}: a new entry of a mapping is written with a plus: +{wanted}=<value>"
        return f"{wanted}: no such key{_nearest(wanted, known)}; all keys: --cfg job"
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


def _split(overrides: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Value overrides as (path, text), and those that choose a group."""
    values, groups = [], []
    for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = parsed.key_or_group.lstrip("+~")
        if (CONF / key).is_dir() or key.startswith("hydra"):
            groups.append(text)
        else:
            values.append((key, text))
    return values, groups


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split())
