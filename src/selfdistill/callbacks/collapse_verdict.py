"""From a history of measures to a named alarm; pure, so that it can be tried on numbers without training.

A badness of 1 or more is bad, below ``1 / recovery`` is well again, between them nothing changes. An alarm is raised
after ``patience`` bad measurements in a row and stands until ``patience`` ones that are well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfdistill.callbacks.collapse_signs import KINDS, MENDS, SIGNS, Kind, Moment, Thresholds

_IMPLIED: dict[Kind, frozenset[Kind]] = {"complete": frozenset({"cluster", "uniform", "dimensional"})}


@dataclass(frozen=True)
class Alarm:
    """What was seen.

    Attributes:
        kind: its name.
        step: when it was said.
        since: the first of the bad measurements.
        line: what was seen and what usually mends it, in one line.
    """

    kind: Kind
    step: int
    since: int
    line: str


class Verdict:
    """Judges one measurement after the other.

    Args:
        thresholds: where a measure becomes a sign.
        patience: measurements in a row that raise an alarm, and that end it.
        early: measurements that the growth of loss and gradient is held against.
    """

    def __init__(self, thresholds: Thresholds | None = None, patience: int = 3, early: int = 5) -> None:
        self.thresholds = thresholds or Thresholds()
        self.patience = patience
        self.early = early
        self.alarms: list[Alarm] = []
        self.standing: dict[Kind, Alarm] = {}
        self.suspects: frozenset[Kind] = frozenset()
        """Kinds whose last measurement was bad, named or not yet."""
        self._start: dict[str, float] = {}
        self._early: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._seen = 0
        self._bad: dict[Kind, list[int]] = {}
        self._well: dict[Kind, int] = {}

    @property
    def kind(self) -> Kind | None:
        """The worst alarm that stands."""
        return next((kind for kind in KINDS if kind in self.standing), None)

    def judge(self, step: int, progress: float, measures: Mapping[str, float]) -> list[Alarm]:
        """Take one measurement.

        Args:
            step: index of its optimizer step.
            progress: share of the run that is done, in [0, 1].
            measures: by name; signs whose measures are missing are not looked at.

        Returns:
            The alarms that this measurement raises, the worst first.
        """
        self._start = {**measures, **self._start}
        if self._seen < self.early:
            self._early = {n: max(v, self._early.get(n, v)) for n, v in {**self._early, **measures}.items()}
        self._seen += 1
        moment = Moment(measures, self._start, self._early, self._before, step, progress)
        self._before = dict(measures)
        found = {kind: sign(moment, self.thresholds) for kind, sign in SIGNS.items()}
        # the first measurements are what others are held against
        bad = {k: seen for k, seen in found.items() if seen is not None and seen[0] >= 1 and self._seen > 1}
        self.suspects = frozenset(bad)
        implied = frozenset[Kind]().union(*(_IMPLIED.get(kind, ()) for kind in bad))
        raised = []
        for kind in KINDS:
            if kind in implied:
                continue
            seen = bad.get(kind)
            if seen is not None:
                steps = self._bad.setdefault(kind, [])
                steps.append(step)
                self._well[kind] = 0
                if len(steps) >= self.patience and kind not in self.standing:
                    alarm = Alarm(kind, step, steps[0], _line(kind, steps[0], seen[1]))
                    self.standing[kind] = alarm
                    raised.append(alarm)
                continue
            self._bad[kind] = []
            badness = found[kind]
            if badness is None or badness[0] < 1 / self.thresholds.recovery:
                self._well[kind] = self._well.get(kind, 0) + 1
                if self._well[kind] >= self.patience:
                    self.standing.pop(kind, None)
        self.alarms += raised
        return raised

    def forgive(self) -> None:
        """Start anew with what is counted, after a mend: alarms end, the run's start and record stay."""
        self.standing, self._bad, self._well, self.suspects = {}, {}, {}, frozenset()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "standing": {kind: asdict(alarm) for kind, alarm in self.standing.items()},
            "start": dict(self._start),
            "early": dict(self._early),
            "before": dict(self._before),
            "seen": self._seen,
            "bad": {kind: list(steps) for kind, steps in self._bad.items()},
            "well": dict(self._well),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]
        self.standing = {kind: Alarm(**alarm) for kind, alarm in state["standing"].items()}
        self._start, self._early, self._before = (dict(state[name]) for name in ("start", "early", "before"))
        self._seen = state["seen"]
        self._bad = {kind: list(steps) for kind, steps in state["bad"].items()}
        self._well = dict(state["well"])


def _line(kind: Kind, since: int, saw: str) -> str:
    return f"{kind} since step {since}: {saw}; what usually mends it: {MENDS[kind]}"
