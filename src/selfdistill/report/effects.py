"""Which of a sweep's keys mattered: the share of the objective's variance that each explains alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.report.sweep import Sweep

MANY = 6
"""More numbers than this are taken as a range."""

_RANGES = 4


@dataclass(frozen=True)
class Effect:
    """Of one key.

    Attributes:
        key: that varied.
        share: η² = Σ_g n_g (mean_g − mean)² / Σ_i (y_i − mean)², in [0, 1].
        chance: what a key without any effect reaches on average, (groups − 1) / (jobs − 1).
        groups: the key's values, or ranges of them, with the mean objective and the jobs of each; the best first.
    """

    key: str
    share: float
    chance: float
    groups: list[tuple[str, float, int]]


def main_effects(sweep: Sweep) -> list[Effect]:
    """One for each key with two values or more among the jobs that have an objective, the largest share first."""
    jobs = [(job, job.objective) for job in sweep.jobs if job.objective is not None]
    mean = sum(value for _, value in jobs) / max(1, len(jobs))
    total = sum((value - mean) ** 2 for _, value in jobs)
    effects = []
    for key in sweep.swept:
        named = levels([job.settings.get(key, "") for job, _ in jobs])
        groups: dict[str, list[float]] = {}
        for name, (_, value) in zip(named, jobs, strict=True):
            groups.setdefault(name, []).append(value)
        if len(groups) < 2:
            continue
        between = sum(len(values) * (sum(values) / len(values) - mean) ** 2 for values in groups.values())
        means = [(name, sum(values) / len(values), len(values)) for name, values in groups.items()]
        share = between / total if total > 0 else 0.0
        chance = (len(groups) - 1) / (len(jobs) - 1)
        effects.append(Effect(key, share, chance, sorted(means, key=lambda group: -group[1])))
    return sorted(effects, key=lambda effect: -effect.share)


def numbers(values: Sequence[str]) -> list[float] | None:
    """The values as finite numbers, or None where one is not."""
    try:
        found = [float(value) for value in values]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def levels(values: Sequence[str]) -> list[str]:
    """For each value the name of its group: itself, or, of many numbers, its quarter of them."""
    found = numbers(values)
    if found is None or len(set(found)) <= MANY:
        return list(values)
    order = sorted(found)
    quarter = [min(order.index(value) * _RANGES // len(order), _RANGES - 1) for value in found]
    spans = {q: [value for value, own in zip(found, quarter, strict=True) if own == q] for q in set(quarter)}
    return [f"{min(spans[q]):.6g} to {max(spans[q]):.6g}" for q in quarter]
