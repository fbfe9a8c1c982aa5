"""How a teacher is made and told to move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfdistill.schedules import Clock, ConstantSchedule, CosineSchedule
from selfdistill.teacher import EMA, TeacherPolicy


def momenta(policy: TeacherPolicy, steps: int, per_epoch: int = 5) -> list[float]:
    return [policy.schedule(Clock(k, steps, per_epoch)) for k in range(steps)]


def test_ema_shapes() -> None:
    assert TeacherPolicy.ema(0.99, 1.0).schedule == CosineSchedule(0.99, 1.0)
    assert momenta(TeacherPolicy.ema(0.5, 1.0, shape="linear"), 5) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert momenta(TeacherPolicy.ema(0.9, shape="constant"), 3) == [0.9] * 3


def test_mean_teachers_start_is_an_exact_running_mean() -> None:
    """min(1 − 1/(k+1), τ): until τ is reached the teacher is the mean of the students so far."""
    policy = TeacherPolicy.ema(0.9, shape="constant", running_mean=True)
    student = nn.Linear(1, 1, bias=False)
    teacher = policy.make(student)
    assert teacher is not None
    ema = EMA(teacher, student)
    seen: list[float] = []
    for k in range(8):
        nn.init.constant_(student.weight, float(k * k))
        seen.append(float(k * k))
        ema.update(policy.schedule(Clock(k, 100, 10)))
        assert teacher.weight.item() == pytest.approx(sum(seen) / len(seen), rel=1e-5)
    assert policy.schedule(Clock(50, 100, 10)) == 0.9


def test_a_snapshot_is_the_student_of_some_steps_ago() -> None:
    assert momenta(TeacherPolicy.snapshot(3), 7) == [1, 1, 0, 1, 1, 0, 1]
    assert momenta(TeacherPolicy.snapshot("1 epoch"), 10) == [1, 1, 1, 1, 0] * 2
    policy, student = TeacherPolicy.snapshot(3), nn.Linear(2, 2)
    teacher = policy.make(student)
    assert teacher is not None
    ema, history = EMA(teacher, student), []
    for k in range(7):
        nn.init.constant_(student.weight, float(k))
        history.append(student.weight.detach().clone())
        ema.update(policy.schedule(Clock(k, 7, 7)))
    assert torch.equal(teacher.weight, history[5])


def test_a_frozen_teacher_is_a_copy_or_any_network() -> None:
    student = nn.Linear(2, 2)
    copy = TeacherPolicy.frozen().make(student)
    assert copy is not None
    assert torch.equal(copy.weight, student.weight)
    assert momenta(TeacherPolicy.frozen(), 3) == [1.0] * 3
    other = nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 2)).requires_grad_()
    made = TeacherPolicy.frozen(other).make(student)
    assert made is not other
    assert made is not None
    assert not any(p.requires_grad for p in made.parameters())
    with pytest.raises(ValueError, match=r"teacher.momentum: a teacher of its own architecture"):
        TeacherPolicy(0.99, network=other)


def test_without_a_teacher_nothing_is_made() -> None:
    assert TeacherPolicy.none().make(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("mode", "buffers", "rule"), [("train", None, "own"), ("eval", None, "copy"), ("eval", "ema", "ema")]
)
def test_buffers_follow_the_mode_unless_told(mode: str, buffers: str | None, rule: str) -> None:
    assert TeacherPolicy(0.9, mode=mode, buffers=buffers).buffer_rule == rule  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"momentum": 1.5}, "teacher.momentum: 1.5 given, allowed is 0 to 1"),
        ({"mode": "half"}, "teacher.mode: 'half' given"),
        ({"buffers": "mean"}, "teacher.buffers: 'mean' given"),
        ({"source": "moon"}, "teacher.source: 'moon' given"),
    ],
)
def test_bad_policies_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TeacherPolicy(**settings)  # type: ignore[arg-type]


def test_a_bad_end_of_the_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher.momentum_end: 2 given"):
        TeacherPolicy.ema(0.9, 2)
    assert TeacherPolicy(ConstantSchedule(0.5)).schedule(Clock()) == 0.5
