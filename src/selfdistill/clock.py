"""The clock of a run, in optimizer steps, and lengths of time on it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

Duration: TypeAlias = int | float | str
"""A length of time: an ``int`` counts optimizer steps, a ``float`` in [0, 1] is a fraction of the run, and
a string has its unit: ``"10 epochs"``, ``"500 steps"``. So ``1`` is one step and ``1.0`` the whole run."""

Period: TypeAlias = Duration
"""A :class:`Duration` after which something happens again: above 0."""

ALLOWED = "an int of steps ≥ 0, a float fraction of the run in [0, 1], 'N epochs' or 'N steps'"
ALLOWED_PERIOD = ALLOWED.replace("≥ 0", "≥ 1").replace("[0, 1]", "(0, 1]")
_WITH_UNIT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>epoch|step)s?")


@dataclass(frozen=True)
class Clock:
    """Where a run stands, in optimizer steps.

    Attributes:
        step: index of the step being taken, from 0; may pass ``total_steps`` where a run is extended.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of an epoch (after accumulation).

    Raises:
        ValueError: a count that is negative, or an epoch without steps.
    """

    step: int = 0
    total_steps: int = 1
    steps_per_epoch: int = 1

    def __post_init__(self) -> None:
        for name, least in (("step", 0), ("total_steps", 0), ("steps_per_epoch", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name}: {value} given, allowed is {least} or more; count optimizer steps")

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]; 1 where the run has no steps or is past its end."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 1.0

    @property
    def epoch(self) -> int:
        """Index of the epoch that the step belongs to, from 0."""
        return self.step // self.steps_per_epoch


def duration_in_steps(duration: Duration, clock: Clock) -> int:
    """Optimizer steps of ``duration`` in the run of ``clock``, rounded to the nearest (halves up).

    Raises:
        ValueError: a negative number, a fraction above 1, an unknown unit, or not a duration at all.
    """
    if isinstance(duration, str):
        match = _WITH_UNIT.fullmatch(duration.strip())
        if match:
            number = float(match["number"])
            return math.floor(number * (clock.steps_per_epoch if match["unit"] == "epoch" else 1) + 0.5)
    elif isinstance(duration, bool):
        pass
    elif isinstance(duration, int):
        if duration >= 0:
            return duration
    elif isinstance(duration, float) and 0.0 <= duration <= 1.0:
        return math.floor(duration * clock.total_steps + 0.5)
    raise ValueError(f"duration: {duration!r} given, allowed is {ALLOWED}")


def check_duration(name: str, duration: Duration) -> None:
    """Refuse a bad duration where it is written, by the name of the argument that holds it.

    Raises:
        ValueError: as :func:`duration_in_steps`.
    """
    try:
        duration_in_steps(duration, Clock())
    except ValueError:
        raise ValueError(f"{name}: {duration!r} given, allowed is {ALLOWED}") from None


def check_period(name: str, period: Period) -> None:
    """As :func:`check_duration`, and refuse one of no length.

    Raises:
        ValueError: not a duration, or 0.
    """
    check_duration(name, period)
    # so long a run that any length at all has steps
    if duration_in_steps(period, Clock(0, 10**12, 10**12)) == 0:
        raise ValueError(f"{name}: {period!r} given, allowed is {ALLOWED_PERIOD}")
