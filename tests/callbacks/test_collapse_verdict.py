"""Which numbers get which name, when, and when not."""

from __future__ import annotations

import math

import pytest

from selfdistill.callbacks.collapse_signs import KINDS, MENDS, Kind, Thresholds
from selfdistill.callbacks.collapse_verdict import Verdict

HEALTHY = {
    "std": 0.56,
    "projection_std": 0.8,
    "rank": 40.0,
    "loss": 5.0,
    "gradient_norm": 1.0,
    "prototype_entropy": 0.96,
    "prototype_information": 0.1,
    "teacher_age": 20.0,
    "half_life": 14.0,
    "agreement": 0.9,
}
SICK: dict[Kind, dict[str, float]] = {
    "diverging": {"loss": 8.0, "gradient_norm": 4.0},
    "complete": {"std": 0.05},
    "cluster": {"prototype_entropy": 0.05, "prototype_information": 1e-5},
    "uniform": {"prototype_entropy": 1.0, "prototype_information": 1e-5},
    "dimensional": {"rank": 1.5},
    "teacher_stale": {"teacher_age": 290.0},
    "teacher_copying": {"teacher_age": 0.0},
}


def run(verdict: Verdict, *phases: tuple[dict[str, float], int], start: int = 0) -> list[tuple[str, int, int]]:
    """So many measurements of each phase, every 10 steps of a run of 1000: (kind, since, step) of the alarms."""
    said, step = [], start
    for changes, count in phases:
        for _ in range(count):
            said += [(a.kind, a.since, a.step) for a in verdict.judge(step, step / 1000, {**HEALTHY, **changes})]
            step += 10
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named_once_with_what_was_seen_and_its_mend(kind: Kind) -> None:
    verdict = Verdict(patience=3)
    assert run(verdict, ({}, 25), (SICK[kind], 10)) == [(kind, 250, 270)]
    assert verdict.kind == kind
    (alarm,) = verdict.alarms
    assert alarm.line.startswith(f"{kind} since step 250: ")
    assert alarm.line.endswith(MENDS[kind])
    assert "\n" not in alarm.line


@pytest.mark.parametrize(
    ("rank", "projection_std", "said"), [(7.0, 0.1, ["dimensional"]), (7.0, 0.3, []), (12.0, 0.1, [])]
)
def test_rank_and_projections_that_fall_together_are_dimensional(
    rank: float, projection_std: float, said: list[str]
) -> None:
    """Each alone happens in healthy runs: ranks of a sixth of the start, projections within .14 at first."""
    verdict = Verdict(patience=3)
    alarms = run(verdict, ({}, 25), ({"rank": rank, "projection_std": projection_std}, 5))
    assert [kind for kind, *_ in alarms] == said
    if said:
        assert "the projections with them" in verdict.alarms[0].line


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_dip_is_no_alarm(kind: Kind) -> None:
    verdict = Verdict(patience=3)
    assert run(verdict, ({}, 25), (SICK[kind], 2), ({}, 1), (SICK[kind], 2), ({}, 5)) == []
    assert verdict.kind is None


def test_an_alarm_ends_only_well_beyond_its_threshold() -> None:
    verdict = Verdict(Thresholds(dimensional_rank=10.0, recovery=1.5), patience=2)
    assert run(verdict, ({}, 5), ({"rank": 9.0}, 2)) == [("dimensional", 50, 60)]
    run(verdict, ({"rank": 14.0}, 20), start=70)
    assert verdict.kind == "dimensional"
    run(verdict, ({"rank": 16.0}, 1), start=270)
    assert verdict.kind == "dimensional"
    run(verdict, ({"rank": 16.0}, 1), start=280)
    assert verdict.kind is None
    assert [alarm.kind for alarm in verdict.alarms] == ["dimensional"]


def test_the_worst_stands_first() -> None:
    verdict = Verdict(patience=2)
    run(verdict, ({}, 25), ({**SICK["dimensional"], **SICK["uniform"], **SICK["teacher_copying"]}, 3))
    assert set(verdict.standing) == {"dimensional", "uniform", "teacher_copying"}
    assert verdict.kind == "uniform"


@pytest.mark.parametrize(("start", "now", "named"), [(66.0, 3.0, True), (66.0, 6.0, False), (4.2, 2.2, False)])
def test_rank_is_held_against_the_start(start: float, now: float, named: bool) -> None:
    """66 → 3 collapsed; 85 → 5.8 (SwAV) and 4.2 → 2.2 (MSN) are healthy runs."""
    verdict = Verdict()
    assert bool(run(verdict, ({"rank": start}, 3), ({"rank": now}, 5))) is named


def test_a_run_that_begins_collapsed_is_named() -> None:
    assert run(Verdict(), ({"std": 1e-6}, 6)) == [("complete", 10, 30)]


@pytest.mark.parametrize("changes", [{"loss": math.nan}, {"gradient_norm": math.inf}])
def test_what_is_not_finite_diverges(changes: dict[str, float]) -> None:
    assert run(Verdict(), ({}, 5), ({**changes, "rank": math.nan, "std": math.nan}, 5)) == [("diverging", 50, 70)]


def test_a_loss_that_grows_alone_does_not_diverge() -> None:
    """A queue that fills doubles the loss of MoCo."""
    assert run(Verdict(), ({}, 6), ({"loss": 10.0}, 6)) == []


def test_every_teacher_is_young_at_the_beginning_and_an_agreeing_one_is_not_stale() -> None:
    verdict = Verdict()
    for step in range(0, 200, 10):
        assert not verdict.judge(step, step / 1000, {**HEALTHY, "teacher_age": 0.99 * step + 2})
    assert run(Verdict(), ({"teacher_age": 900.0, "agreement": 0.99}, 50), start=300) == []


def test_signs_without_their_measures_are_silent() -> None:
    verdict = Verdict(patience=1)
    assert [a for s in range(50) for a in verdict.judge(s, s / 50, {"loss": 1.0})] == []


def test_forgiven_alarms_are_raised_again() -> None:
    verdict = Verdict(patience=2)
    run(verdict, ({}, 3), ({"rank": 1.0}, 2))
    verdict.forgive()
    assert verdict.kind is None
    assert run(verdict, ({"rank": 1.0}, 2), start=50) == [("dimensional", 50, 60)]
    assert len(verdict.alarms) == 2


@pytest.mark.parametrize("cut", range(12))
def test_continues_where_it_was_stored(cut: int) -> None:
    phases = [{}] * 4 + [{"rank": 1.0}] * 5 + [{}] * 4
    whole, first, second = Verdict(), Verdict(), Verdict()
    for i, changes in enumerate(phases):
        if i == cut:
            second.load_state_dict(first.state_dict())
        for verdict in (whole, first if i < cut else second):
            verdict.judge(10 * i, i / 13, {**HEALTHY, **changes})
    assert second.alarms == whole.alarms
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(("name", "value"), [("complete", -1.0), ("recovery", 0.5), ("stale", math.nan)])
def test_bad_thresholds_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"CollapseMonitor.thresholds.{name}"):
        Thresholds(**{name: value})
