"""Quantities that change over a run: one :class:`Clock`, and schedules that are functions of it.

A schedule holds no state, so resuming, accumulating or extending a run needs nothing of it: the same
clock gives the same value. Schedules are frozen dataclasses: equal, hashable, printable, picklable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

from selfdistill.clock import Clock, Duration, Period, check_duration, check_period, duration_in_steps

Shape: TypeAlias = Literal["cosine", "linear", "constant"]
"""How a value goes from its start to its end."""


class Schedule(ABC):
    """A number that depends on the clock alone."""

    @abstractmethod
    def __call__(self, clock: Clock) -> float:
        """The value for the step ``clock.step``."""


@final
@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """``value`` at every step."""

    value: float

    def __post_init__(self) -> None:
        _check_finite("value", self.value)

    def __call__(self, clock: Clock) -> float:
        return float(self.value)


@final
@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """From ``start`` at step 0 to ``end`` at step ``duration``, in a straight line, and ``end`` afterwards.

    A duration of no steps is at its end from the first step on.
    """

    start: float
    end: float
    duration: Duration = 1.0

    def __post_init__(self) -> None:
        _check_finite("start", self.start)
        _check_finite("end", self.end)
        check_duration("duration", self.duration)

    def __call__(self, clock: Clock) -> float:
        return _between(self.start, self.end, _progress(clock, self.duration))


@final
@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """From ``start`` to ``end`` along half a cosine, and ``end`` afterwards.

    ``end + (start − end)·(1 + cos(π k/K)) / 2`` at step k of K = ``duration``; with end = 1 this is the
    momentum of BYOL (arXiv 2006.07733). It is exactly ``start`` at k = 0 and exactly ``end`` from k = K on.
    The last step of a run is k = K − 1, one short of the end (.996 → 1 over 100 steps: .999999013); the
    tables of DINO and iBOT hold the steps 0 … K − 1 only and so never contain ``end``.
    """

    start: float
    end: float
    duration: Duration = 1.0

    def __post_init__(self) -> None:
        _check_finite("start", self.start)
        _check_finite("end", self.end)
        check_duration("duration", self.duration)

    def __call__(self, clock: Clock) -> float:
        progress = _progress(clock, self.duration)
        return _between(self.start, self.end, (1.0 - math.cos(math.pi * progress)) / 2.0)


@final
@dataclass(frozen=True)
class RampUpSchedule(Schedule):
    """``end·exp(−5(1 − k/K)²)`` at step k of K = ``duration``, and ``end`` afterwards.

    The weight of the consistency in Mean Teacher (arXiv 1703.01780), which is small while the teacher knows nothing.
    """

    end: float
    duration: Duration = 1.0

    def __post_init__(self) -> None:
        _check_finite("end", self.end)
        check_duration("duration", self.duration)

    def __call__(self, clock: Clock) -> float:
        return self.end * math.exp(-5.0 * (1.0 - _progress(clock, self.duration)) ** 2)


@final
@dataclass(frozen=True)
class StepSchedule(Schedule):
    """``values[i]`` once i of the ``milestones`` are reached (a step at a milestone has reached it).

    ``StepSchedule([1.0, 0.1, 0.01], ["120 epochs", "160 epochs"])`` divides by ten twice.

    Raises:
        ValueError: not exactly one value more than milestones.
    """

    values: Sequence[float]
    milestones: Sequence[Duration]

    def __post_init__(self) -> None:
        # lists (as they come from a config) would make the schedule unhashable
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if len(self.values) != len(self.milestones) + 1:
            raise ValueError(
                f"values: {len(self.values)} given for {len(self.milestones)} milestones, allowed is "
                f"{len(self.milestones) + 1}; give the value before the first milestone and one after each"
            )
        for value in self.values:
            _check_finite("values", value)
        for milestone in self.milestones:
            check_duration("milestones", milestone)

    def __call__(self, clock: Clock) -> float:
        reached = sum(clock.step >= duration_in_steps(milestone, clock) for milestone in self.milestones)
        return float(self.values[reached])


@final
@dataclass(frozen=True)
class WarmupSchedule(Schedule):
    """A straight line from ``start`` to the first value of ``after``, then ``after``.

    ``after`` runs on the clock of what remains: its step 0 is the end of the warm-up and its fractions are
    of the steps left, as in BYOL and DINO. A warm-up as long as the run or longer only climbs: the run ends
    on the line that leads to the first value of ``after``.

    Args:
        after: a schedule, or the number to stay at.
        duration: length W of the warm-up; step k < W has ``start + (after_0 − start)·k/W``.
        start: the value at step 0 (unless W = 0).
    """

    after: Schedule | float
    duration: Duration
    start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "after", as_schedule(self.after))
        check_duration("duration", self.duration)
        _check_finite("start", self.start)

    def __call__(self, clock: Clock) -> float:
        after = as_schedule(self.after)
        steps = duration_in_steps(self.duration, clock)
        # never zero: a remainder without steps would start at its end, and the warm-up would lead there
        remaining = max(clock.total_steps - steps, 1)
        if clock.step >= steps:
            return after(replace(clock, step=clock.step - steps, total_steps=remaining))
        target = after(replace(clock, step=0, total_steps=remaining))
        return _between(self.start, target, clock.step / steps)


@final
@dataclass(frozen=True)
class RunningMeanSchedule(Schedule):
    """Momentum ``min(1 − 1/(k+1), ceiling)`` at step k (Mean Teacher, arXiv 1703.01780).

    While below ``ceiling`` the teacher is the plain mean of the students since step 0: 0 at the first
    update, 1/2 at the second.
    """

    ceiling: Schedule | float

    def __post_init__(self) -> None:
        object.__setattr__(self, "ceiling", as_schedule(self.ceiling))

    def __call__(self, clock: Clock) -> float:
        return min(1.0 - 1.0 / (clock.step + 1), as_schedule(self.ceiling)(clock))


@final
@dataclass(frozen=True)
class SnapshotSchedule(Schedule):
    """Momentum of a teacher that is an older student: 0 (a copy) after every N-th step, 1 between.

    With N = ``every`` (at least one step), the update that follows step k copies when k + 1 is a multiple
    of N: the first copy is made after N steps.
    """

    every: Period

    def __post_init__(self) -> None:
        check_period("every", self.every)

    def __call__(self, clock: Clock) -> float:
        every = max(duration_in_steps(self.every, clock), 1)
        return 0.0 if (clock.step + 1) % every == 0 else 1.0


def make_schedule(shape: Shape, start: float, end: float, duration: Duration = 1.0) -> Schedule:
    """The schedule of a ``shape`` by name, from ``start`` to ``end``; ``constant`` stays at ``start``.

    Raises:
        ValueError: an unknown shape.
    """
    if shape == "constant":
        return ConstantSchedule(start)
    if shape == "cosine":
        return CosineSchedule(start, end, duration)
    if shape == "linear":
        return LinearSchedule(start, end, duration)
    raise ValueError(f"shape: {shape!r} given, allowed is cosine, linear or constant")


def as_schedule(value: float | Schedule) -> Schedule:
    """``value`` itself if it is a schedule, else a number that stays as it is.

    Raises:
        TypeError: neither a number nor a schedule.
        ValueError: a number that is not finite.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"schedule: {value!r} given, allowed is a number or a Schedule")
    return ConstantSchedule(value)


def _check_finite(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: {value!r} given, allowed is a finite number")


def _progress(clock: Clock, duration: Duration) -> float:
    steps = duration_in_steps(duration, clock)
    return clock.step / steps if clock.step < steps else 1.0


def _between(start: float, end: float, weight: float) -> float:
    """The point at ``weight`` in [0, 1], exact at both ends and never outside them."""
    if weight == 1.0:
        return float(end)  # start + (end − start) may miss it by rounding
    return start + (end - start) * weight
