"""What an :class:`~selfdistill.optim.OptimizerRecipe` refuses: each mistake is one line."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from selfdistill.schedules import check_duration

if TYPE_CHECKING:
    from selfdistill.optim.recipe import OptimizerRecipe

_NAMES = ("adamw", "sgd", "lars")
_SHAPES = ("cosine", "linear", "constant")
_SCALINGS = ("none", "linear", "sqrt")
_CLIP_MODES = ("global", "parameter", "module")
_KINDS = ("bias", "norm", "token")


def check_values(recipe: OptimizerRecipe) -> None:
    """Refuse values outside their ranges.

    Raises:
        ValueError: naming the argument, the value and what is allowed.
    """
    if callable(recipe.name):
        if recipe.lr is not None or recipe.weight_decay:
            raise ValueError(
                f"lr, weight_decay: {recipe.lr}, {recipe.weight_decay} given beside a function for name; "
                "give them to the optimizer that the function makes"
            )
    else:
        _one_of("name", recipe.name, _NAMES, " or a function from parameter groups to an optimizer")
        if recipe.lr is None:
            raise ValueError(f"lr: required with name={recipe.name}; give the peak learning rate")
    _one_of("schedule", recipe.schedule, _SHAPES)
    _one_of("scaling", recipe.scaling, _SCALINGS)
    _one_of("clip_mode", recipe.clip_mode, _CLIP_MODES)
    for name in ("lr", "weight_decay", "weight_decay_end", "lr_start", "lr_end"):
        _at_least_zero(name, getattr(recipe, name))
    for name, value in recipe.lr_multipliers.items():
        _at_least_zero(f"lr_multipliers.{name}", value)
    if len(recipe.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.betas):
        raise ValueError(f"betas: {tuple(recipe.betas)} given, allowed are two numbers in [0, 1)")
    if not 0 <= recipe.momentum < 1:
        raise ValueError(f"momentum: {recipe.momentum} given, allowed is a number in [0, 1)")
    if recipe.reference_batch < 1:
        raise ValueError(f"reference_batch: {recipe.reference_batch} given, allowed is 1 or more")
    if not 0 < recipe.layer_decay <= 1:
        raise ValueError(f"layer_decay: {recipe.layer_decay} given, allowed is a number in (0, 1]")
    if recipe.clip is not None and not 0 < recipe.clip < math.inf:
        raise ValueError(f"clip: {recipe.clip} given, allowed is a finite number above 0, or None")
    check_duration("warmup", recipe.warmup)
    for name, duration in recipe.freeze.items():
        check_duration(f"freeze.{name}", duration)
    for argument in ("decay_exclude", "constant_lr"):
        _refuse_string(argument, getattr(recipe, argument))
    for kind in recipe.decay_exclude:
        if not kind.startswith("role:"):
            _one_of("decay_exclude", kind, _KINDS, " or role:<name>")


def check_roles(recipe: OptimizerRecipe, known: Collection[str]) -> None:
    """Refuse roles that the module does not have.

    Raises:
        ValueError: naming the argument, the role and those that there are.
    """
    excluded = [kind.removeprefix("role:") for kind in recipe.decay_exclude if kind.startswith("role:")]
    named = {
        "constant_lr": recipe.constant_lr,
        "freeze": recipe.freeze,
        "lr_multipliers": recipe.lr_multipliers,
        "decay_exclude": excluded,
    }
    for argument, roles in named.items():
        for role in roles:
            if role not in known:
                has = ", ".join(known) or "no roles"
                raise ValueError(f"{argument}: role {role!r} given, this module has {has}")


def _refuse_string(argument: str, value: Sequence[str]) -> None:
    if isinstance(value, str):
        raise ValueError(f"{argument}: {value!r} given, allowed is a list of names, e.g. [{value}]")


def _one_of(argument: str, value: object, allowed: Sequence[str], more: str = "") -> None:
    if value not in allowed:
        raise ValueError(f"{argument}: {value!r} given, allowed is {', '.join(allowed) or 'none'}{more}")


def _at_least_zero(argument: str, value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{argument}: {value} given, allowed is a finite number ≥ 0")
