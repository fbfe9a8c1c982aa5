"""Allowed and typical values of numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.config.errors import UserError, shown
from selfdistill.config.sharded import check_sharded


@dataclass(frozen=True)
class Range:
    """Allowed values of a number, with the mission's typical range inside it; of a ``share``, a float is at most 1.

    Where it may be ``listed``, a list is left to the constructor.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    whole: bool = False
    share: bool = False
    typical: tuple[float, float] | None = None
    also: tuple[int | None, ...] = ()
    listed: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        others = "".join(f", or {'null' if value is None else value}" for value in self.also)
        if self.share:
            share, least = ("above 0.0 and up to 1.0", 1) if self.open_low else ("from 0.0 to 1.0", 0)
            return f"a share {share}, or a whole number of at least {least}{others}"
        if self.low is not None and self.high is not None:
            return f"{kind} from {self.low} to {self.high}{others}"
        if self.low is not None:
            return f"{kind} {'above' if self.open_low else 'of at least'} {self.low}{others}"
        return f"{kind}{others}"

    def allows(self, value: Any) -> bool:
        if isinstance(value, list):
            return self.listed
        if value in self.also and not isinstance(value, bool):
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.whole and not isinstance(value, int):
            return False
        if self.share and isinstance(value, float) and value > 1:
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return self.high is None or value <= self.high


_TYPICAL_MOMENTUM = (0.99, 0.9999)
_TYPICAL_LR = (1e-4, 1e-3)
_TYPICAL_TEMPERATURE = (0.1, 1.0)
_TYPICAL_WEIGHT = (0.5, 2.0)

# The key's full path, as a pattern, an element of a list by its place; values that are null or not plain numbers where
# a schedule may stand are left to the constructors.
RULES: dict[str, Range] = {
    r"teacher\.momentum": Range(0, 1, typical=_TYPICAL_MOMENTUM),
    r"teacher\.momentum_end": Range(0, 1, also=(None,)),
    r"optimizer\.lr": Range(0, typical=_TYPICAL_LR, also=(None,)),
    r"optimizer\.weight_decay": Range(0),
    r"optimizer\.(weight_decay_end|lr_start|lr_end)": Range(0, also=(None,)),
    r"optimizer\.momentum": Range(0, 1),
    r"optimizer\.layer_decay": Range(0, 1, open_low=True),
    r"optimizer\.reference_batch": Range(1, whole=True),
    r"optimizer\.clip": Range(0, open_low=True, also=(None,)),
    r"method\.heads": Range(1, whole=True, listed=True),
    r"method\.heads\.\d+\.\w+_dim": Range(1, whole=True, also=(None,)),
    r"method\.(\w+_dim|(patch_)?prototypes|predictor_(width|depth|heads)|top_k)": Range(1, whole=True, also=(None,)),
    r"method\.(projector_layers|sinkhorn_iterations)": Range(1, whole=True),
    r"method\.queue_length": Range(0, whole=True),
    r"method\.center_momentum": Range(0, 1),
    r"(divergence|method|objective)\.(.*[._])?temperature": Range(0, open_low=True, typical=_TYPICAL_TEMPERATURE),
    r"objective\.(.*\.)?weight": Range(0, typical=_TYPICAL_WEIGHT),
    r"weights\.\w+": Range(0, typical=_TYPICAL_WEIGHT),
    r"data\.(batch_size|eval_batch_size)": Range(1, whole=True),
    r"data\.num_workers": Range(0, whole=True),
    r"data\.limit": Range(1, whole=True, also=(None,)),
    r"data\.labelled": Range(0, open_low=True, share=True, also=(None,)),
    r"student\.noise": Range(0),
    r"backbone\.drop_path": Range(0, 0.99),
    r"(evaluation|protocol\.\w+)\.(k|draws|fraction_draws|epochs|batch_size|max_iter|most)": Range(1, whole=True),
    r"(evaluation|protocol\.\w+)\.(shots|ks)\.\d+": Range(1, whole=True),
    r"protocol\.\w+\.fractions\.\d+": Range(0, 1, open_low=True),
    r"protocol\.\w+\.temperatures\.\d+": Range(0, open_low=True),
    r"evaluation\.temperature": Range(0, open_low=True),
    r"callbacks\.collapse_monitor\.(every|patience|rollbacks)": Range(1, whole=True),
    r"callbacks\.collapse_monitor\.rows": Range(2, whole=True),
    r"callbacks\.collapse_monitor\.thresholds\.recovery": Range(1),
    r"callbacks\.collapse_monitor\.thresholds\.[a-z]\w*": Range(0),
    r"seed": Range(0, 2**32 - 1, whole=True),
    r"trainer\.(max_epochs|max_steps)": Range(1, whole=True, also=(-1, None)),
    r"trainer\.limit_train_batches": Range(0, open_low=True, share=True, also=(None,)),
    r"trainer\.limit_(val|test|predict)_batches": Range(0, share=True, also=(None,)),
    r"trainer\.accumulate_grad_batches": Range(1, whole=True),
    r"trainer\.(log_every_n_steps|check_val_every_n_epoch)": Range(1, whole=True),
    r"images": Range(1, whole=True),
}

# Texts that are one of a few.
CHOICES = {
    "accumulate": ("plain", "exact"),
    "optimizer.name": ("adamw", "sgd", "lars"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    # half-precision weights: a teacher with momentum of .996 and more would never move
    "trainer.precision": ("32-true", "32", "64-true", "64", "bf16-mixed", "16-mixed", "null"),
}


def check_values(plain: Mapping[str, Any]) -> None:
    """Refuse values outside their allowed range, and those that do not go with sharded networks.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    for path, value in _with_elements(flatten(plain)):
        if path in CHOICES and ("null" if value is None else str(value)) not in CHOICES[path]:
            raise UserError(f"{path}: {shown(value)} given, allowed is {' or '.join(CHOICES[path])}")
        rule = rule_of(path)
        if rule is not None and not isinstance(value, dict) and not rule.allows(value):
            key, _, place = path.rpartition(".")
            if place.isdigit():
                raise UserError(f"{key}: {shown(value)} given, allowed in it is {rule}")
            raise UserError(f"{path}: {shown(value)} given, allowed is {rule}")
    check_sharded(plain)


def untypical(plain: Mapping[str, Any], changed: Sequence[str]) -> list[str]:
    """A line for each key of ``changed`` whose value is allowed but outside its typical range.

    The range reaches as far as the value that a small data set takes instead (``scale``).
    """
    values = dict(flatten(plain))
    warnings = []
    paper = plain.get("method", {}).get("paper", {})
    published = {"teacher.momentum": paper.get("momentum"), "optimizer.lr": paper.get("optimizer", {}).get("lr")}
    scale = plain.get("scale", {})
    taken = {"teacher.momentum": scale.get("momentum"), "optimizer.lr": scale.get("optimizer", {}).get("lr")}
    for path in changed:
        if values.get(path) == published.get(path, object()):
            continue
        rule, value = rule_of(path), values.get(path)
        if rule is None or rule.typical is None or not isinstance(value, int | float):
            continue
        low, high = rule.typical
        if (own := taken.get(path)) is not None:
            low, high = min(low, own), max(high, own)
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


def _with_elements(leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """``leaves``, and those of lists by their place."""
    for path, value in leaves:
        yield path, value
        if isinstance(value, list):
            places = {f"{path}.{place}": item for place, item in enumerate(value)}
            yield from _with_elements(flatten(places))


def rule_of(path: str) -> Range | None:
    return next((rule for pattern, rule in RULES.items() if re.fullmatch(pattern, path)), None)
