"""The terms of a method and of its objectives, each with its weight now."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from selfdistill.schedules import Clock, Schedule, as_schedule


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
    for name in weights:
        if name not in known:
            raise ValueError(f"weights: {name!r} given, allowed is {', '.join(sorted(known))}")
    one = as_schedule(1.0)
    return terms, {name: weights.get(name, weights.get(owner, one))(clock) for name, owner in owners.items()}
