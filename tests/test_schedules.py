from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.schedules import (
    Clock,
    ConstantSchedule,
    CosineSchedule,
    Duration,
    LinearSchedule,
    RampUpSchedule,
    RunningMeanSchedule,
    Schedule,
    SnapshotSchedule,
    StepSchedule,
    WarmupSchedule,
    as_schedule,
    check_duration,
    duration_in_steps,
)

quick = settings(derandomize=True, deadline=None, max_examples=100)
values = st.floats(-1e6, 1e6)
durations = st.one_of(
    st.integers(0, 500),
    st.floats(0.0, 1.0),
    st.integers(0, 30).map(lambda n: f"{n} epochs"),
    st.integers(0, 500).map(lambda n: f"{n} steps"),
)
clocks = st.builds(Clock, st.integers(0, 1000), st.integers(0, 500), st.integers(1, 50))

EXAMPLES: list[Schedule] = [
    ConstantSchedule(0.5),
    LinearSchedule(0.0, 2.0, "3 epochs"),
    CosineSchedule(0.996, 1.0),
    StepSchedule([1.0, 0.1], [0.5]),
    WarmupSchedule(CosineSchedule(1.0, 0.0), 10),
    RunningMeanSchedule(0.999),
    SnapshotSchedule("1 epoch"),
]


def run(schedule: Schedule, steps: int, total: int | None = None, per_epoch: int = 1) -> list[float]:
    return [schedule(Clock(k, steps if total is None else total, per_epoch)) for k in range(steps)]


class TestClock:
    def test_fraction_and_epoch(self) -> None:
        clock = Clock(step=25, total_steps=100, steps_per_epoch=10)
        assert (clock.fraction, clock.epoch) == (0.25, 2)

    def test_fraction_stays_one_past_the_end_and_without_steps(self) -> None:
        assert Clock(300, 100, 10).fraction == 1.0
        assert Clock(0, 0, 1).fraction == 1.0

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [((-1, 10, 1), "step"), ((0, -1, 1), "total_steps"), ((0, 10, 0), "steps_per_epoch")],
    )
    def test_refuses_bad_counts(self, arguments: tuple[int, int, int], name: str) -> None:
        with pytest.raises(ValueError, match=rf"^{name}: "):
            Clock(*arguments)


class TestDuration:
    @pytest.mark.parametrize(
        ("duration", "steps"),
        [
            (0, 0),
            (1, 1),
            (7, 7),
            (1.0, 200),
            (0.0, 0),
            (0.1, 20),
            (0.29, 58),
            (0.0125, 3),  # 2.5 steps
            ("1 epoch", 25),
            ("10 epochs", 250),
            ("0.5 epochs", 13),
            ("500 steps", 500),
            (" 1step ", 1),
        ],
    )
    def test_units(self, duration: Duration, steps: int) -> None:
        assert duration_in_steps(duration, Clock(3, 200, 25)) == steps

    @pytest.mark.parametrize(
        "duration",
        [
            -1,
            -0.1,
            1.5,
            10.0,
            math.nan,
            math.inf,
            True,
            "10",
            "10 days",
            "-1 epochs",
            "epochs",
            "",
            None,
            [1],
        ],
    )
    def test_refuses(self, duration: Duration) -> None:
        with pytest.raises(ValueError, match=r"^duration: .* given, allowed is .*epochs.*steps") as error:
            duration_in_steps(duration, Clock())
        assert "\n" not in str(error.value)

    def test_names_the_argument(self) -> None:
        with pytest.raises(ValueError, match=r"^freeze: '1 year' given"):
            check_duration("freeze", "1 year")
        check_duration("freeze", "1 epoch")


class TestInterpolation:
    def test_cosine_is_the_momentum_of_byol(self) -> None:
        # computed apart from this code; see arXiv 2006.07733, section 3.3
        quarters = [CosineSchedule(0.996, 1.0)(Clock(k, 4, 1)) for k in range(5)]
        assert quarters == pytest.approx([0.996, 0.99658579, 0.998, 0.99941421, 1.0], abs=5e-9)
        quarters = [CosineSchedule(0.99, 1.0)(Clock(k, 4, 1)) for k in range(5)]
        assert quarters == pytest.approx([0.99, 0.99146447, 0.995, 0.99853553, 1.0], abs=5e-9)

    def test_last_step_of_the_run_is_the_last_entry_of_dinos_table(self) -> None:
        assert run(CosineSchedule(0.996, 1.0), 100)[-1] == pytest.approx(0.999999013, abs=5e-10)

    def test_linear_closed_form(self) -> None:
        assert run(LinearSchedule(0.04, 0.07, "3 epochs"), 9, per_epoch=2) == pytest.approx(
            [0.04, 0.045, 0.05, 0.055, 0.06, 0.065, 0.07, 0.07, 0.07]
        )

    @pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
    @quick
    @given(start=values, end=values, duration=durations, clock=clocks)
    def test_ends_are_exact_and_bounds_are_kept(
        self,
        kind: type[LinearSchedule] | type[CosineSchedule],
        start: float,
        end: float,
        duration: Duration,
        clock: Clock,
    ) -> None:
        schedule = kind(start, end, duration)
        steps = duration_in_steps(duration, clock)
        value = schedule(clock)
        assert min(start, end) <= value <= max(start, end)
        first = schedule(Clock(0, clock.total_steps, clock.steps_per_epoch))
        assert first == (start if steps else end)
        for beyond in (steps, steps + 1, 10 * steps + 7):
            assert schedule(Clock(beyond, clock.total_steps, clock.steps_per_epoch)) == end

    @pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
    def test_moves_one_way(self, kind: type[LinearSchedule] | type[CosineSchedule]) -> None:
        course = run(kind(1.0, 0.25, 0.5), 60)
        assert course == sorted(course, reverse=True)
        assert len(set(course)) == 31

    @pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
    def test_equal_ends_are_a_constant(self, kind: type[LinearSchedule] | type[CosineSchedule]) -> None:
        assert set(run(kind(0.996, 0.996), 50)) == {0.996}

    def test_an_endless_run(self) -> None:
        endless = 2**63 - 1
        assert CosineSchedule(0.996, 1.0)(Clock(1000, endless, endless)) == pytest.approx(0.996)
        assert LinearSchedule(0.0, 1.0, 10)(Clock(5, endless, endless)) == 0.5


class TestStep:
    def test_a_milestone_takes_effect_at_its_step(self) -> None:
        schedule = StepSchedule([1.0, 0.1, 0.01], ["1 epoch", 0.75])
        assert run(schedule, 8, per_epoch=3) == [1.0] * 3 + [0.1] * 3 + [0.01] * 2

    def test_without_milestones_it_is_constant(self) -> None:
        assert set(run(StepSchedule([0.3], []), 5)) == {0.3}

    def test_lists_and_tuples_are_the_same(self) -> None:
        schedule = StepSchedule([1, 2], [3])
        assert schedule == StepSchedule((1, 2), (3,))
        assert hash(schedule) == hash(StepSchedule((1, 2), (3,)))

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_refuses_counts_that_do_not_match(self, count: int) -> None:
        with pytest.raises(ValueError, match=r"^values: \d given for 1 milestones, allowed is 2"):
            StepSchedule([1.0] * count, [5])


class TestWarmup:
    def test_learning_rate_of_byol(self) -> None:
        """Slow restatement: lr·k/W up to W, then a cosine over the steps that remain."""
        peak, warmup, total = 0.45, 20, 100
        expected = [
            peak * k / warmup if k < warmup else peak * 0.5 * (1 + math.cos(math.pi * (k - warmup) / (total - warmup)))
            for k in range(total + 1)
        ]
        schedule = WarmupSchedule(CosineSchedule(peak, 0.0), "2 epochs")
        assert [schedule(Clock(k, total, 10)) for k in range(total + 1)] == pytest.approx(expected, abs=1e-15)

    def test_fractions_of_after_are_of_the_remaining_run(self) -> None:
        schedule = WarmupSchedule(StepSchedule([1.0, 0.5], [0.5]), 20)
        course = run(schedule, 100)
        assert course[20:60] == [1.0] * 40
        assert course[60:] == [0.5] * 40

    def test_a_number_stays(self) -> None:
        assert run(WarmupSchedule(2.0, 4, start=1.0), 7) == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0, 2.0]
        assert WarmupSchedule(2.0, 4) == WarmupSchedule(ConstantSchedule(2.0), 4)

    @pytest.mark.parametrize("total", [0, 1, 2, 10])
    def test_longer_than_the_run_only_climbs(self, total: int) -> None:
        schedule = WarmupSchedule(CosineSchedule(1.0, 0.0), 10)
        assert run(schedule, max(total, 1), total) == [k / 10 for k in range(max(total, 1))]

    def test_without_warmup_it_is_what_comes_after(self) -> None:
        schedule = CosineSchedule(1.0, 0.0)
        assert run(WarmupSchedule(schedule, 0), 10) == run(schedule, 10)

    def test_nested(self) -> None:
        schedule = WarmupSchedule(WarmupSchedule(1.0, 2, start=0.5), 2, start=0.0)
        assert run(schedule, 6) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]

    @quick
    @given(peak=values, start=values, duration=durations, clock=clocks)
    def test_extremes(self, peak: float, start: float, duration: Duration, clock: Clock) -> None:
        schedule = WarmupSchedule(CosineSchedule(peak, 0.0), duration, start)
        assert min(start, peak, 0.0) <= schedule(clock) <= max(start, peak, 0.0)
        first = schedule(Clock(0, clock.total_steps, clock.steps_per_epoch))
        assert first == (start if duration_in_steps(duration, clock) else peak)


class TestTeacherMomenta:
    def test_running_mean_averages_the_students(self) -> None:
        students = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
        teacher = 100.0
        for momentum, student in zip(run(RunningMeanSchedule(0.999), 6), students, strict=True):
            teacher = momentum * teacher + (1 - momentum) * student
        assert teacher == pytest.approx(sum(students) / 6)

    def test_running_mean_stops_at_its_ceiling(self) -> None:
        assert run(RunningMeanSchedule(0.75), 6) == [0.0, 0.5, pytest.approx(2 / 3), 0.75, 0.75, 0.75]
        assert RunningMeanSchedule(0.999)(Clock(998, 5000, 1)) < 0.999
        assert RunningMeanSchedule(0.999)(Clock(1000, 5000, 1)) == 0.999

    def test_ceiling_may_move(self) -> None:
        assert RunningMeanSchedule(LinearSchedule(0.9, 1.0))(Clock(50, 100, 1)) == pytest.approx(0.95)

    def test_snapshot_copies_after_every_nth_step(self) -> None:
        course = run(SnapshotSchedule(3), 9)
        assert course == [1.0, 1.0, 0.0] * 3
        assert run(SnapshotSchedule("2 epochs"), 12, per_epoch=2) == [1.0, 1.0, 1.0, 0.0] * 3

    @pytest.mark.parametrize("every", [1, 0.001])
    def test_snapshot_of_less_than_a_step_copies_always(self, every: Duration) -> None:
        assert run(SnapshotSchedule(every), 4) == [0.0] * 4

    @pytest.mark.parametrize("every", [0, 0.0, "0 epochs"])
    def test_snapshot_of_no_time_is_refused(self, every: Duration) -> None:
        with pytest.raises(ValueError, match=r"every: .* given, allowed is an int of steps ≥ 1, .* \(0, 1\]"):
            SnapshotSchedule(every)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda s: type(s).__name__)
class TestEverySchedule:
    def test_is_a_value(self, schedule: Schedule) -> None:
        copy = pickle.loads(pickle.dumps(schedule))
        assert copy == schedule
        assert hash(copy) == hash(schedule)
        assert repr(schedule).startswith(type(schedule).__name__)
        with pytest.raises(AttributeError):
            schedule.value = 1.0  # type: ignore[attr-defined]

    @quick
    @given(clock=clocks)
    def test_gives_a_finite_float_at_any_clock(self, schedule: Schedule, clock: Clock) -> None:
        value = schedule(clock)
        assert type(value) is float
        assert math.isfinite(value)


class TestBadInput:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "0.9", True])
    def test_values_must_be_finite_numbers(self, bad: float) -> None:
        for make, name in (
            (lambda: ConstantSchedule(bad), "value"),
            (lambda: LinearSchedule(bad, 1.0), "start"),
            (lambda: CosineSchedule(0.0, bad), "end"),
            (lambda: StepSchedule([bad], []), "values"),
            (lambda: WarmupSchedule(1.0, 5, start=bad), "start"),
        ):
            with pytest.raises(ValueError, match=rf"^{name}: .* given, allowed is a finite number$"):
                make()

    def test_durations_are_refused_where_they_are_written(self) -> None:
        for make, name in (
            (lambda: LinearSchedule(0.0, 1.0, -1), "duration"),
            (lambda: CosineSchedule(0.0, 1.0, 2.0), "duration"),
            (lambda: StepSchedule([0.0, 1.0], ["3 weeks"]), "milestones"),
            (lambda: WarmupSchedule(1.0, -5), "duration"),
            (lambda: SnapshotSchedule("often"), "every"),
        ):
            with pytest.raises(ValueError, match=rf"^{name}: .* given, allowed is an int of steps"):
                make()

    def test_as_schedule(self) -> None:
        schedule = LinearSchedule(0.0, 1.0)
        assert as_schedule(schedule) is schedule
        assert as_schedule(3) == ConstantSchedule(3.0)
        for bad in (None, "cosine", True, [1.0]):
            with pytest.raises(TypeError, match=r"^schedule: .* given, allowed is a number or a Schedule$"):
                as_schedule(bad)  # type: ignore[arg-type]


def test_ramp_up_is_mean_teachers() -> None:
    ramp = RampUpSchedule(100.0, "5 epochs")
    # written down from the paper: exp(-5) of the weight at the start, exp(-5/4) half-way, the whole from the end on
    assert ramp(Clock(0, 1000, 20)) == pytest.approx(0.673794700)
    assert ramp(Clock(50, 1000, 20)) == pytest.approx(28.6504797)
    assert ramp(Clock(100, 1000, 20)) == 100.0
    assert ramp(Clock(999, 1000, 20)) == 100.0
