"""The terms of a method and of its objectives, each with its weight now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from selfdistill.compatibility import check_weights
from selfdistill.objectives import Objective
from selfdistill.schedules import Clock, Schedule, as_schedule
from selfdistill.views import Views

if TYPE_CHECKING:
    from selfdistill.methods.base import SelfDistillModule


def objective_terms(
    module: SelfDistillModule[Any, Any], views: Views, predictions: Any, targets: Any
) -> dict[str, dict[str, Tensor]]:
    """The terms of each of the module's objectives."""
    return {
        owner: cast(Objective, objective).terms(module, views, predictions, targets)
        for owner, objective in module.objectives.items()
    }


def weighed(
    own: Mapping[str, Tensor],
    objectives: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, Schedule],
    clock: Clock,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All terms by name, and the weight of each.

    Args:
        own: the method's terms.
        objectives: the terms of each objective by its name.
        weights: of a term, or of all terms of an objective; what is not named weighs 1.
        clock: where the run stands.

    Raises:
        ValueError: two terms of one name, or a weight of none.
    """
    terms = dict(own)
    owners = {name: name for name in terms}
    for owner, extra in objectives.items():
        for name, term in extra.items():
            if name in terms:
                raise ValueError(f"objective: the term {name!r} exists twice; set weights.{name}=… instead")
            terms[name], owners[name] = term, owner
    known = {*terms, *owners.values()}
    check_weights(weights, known)
    one = as_schedule(1.0)
    return terms, {name: weights.get(name, weights.get(owner, one))(clock) for name, owner in owners.items()}
