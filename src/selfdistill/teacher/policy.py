"""What a method says about its teacher; the ``TeacherUpdate`` callback carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from selfdistill.compatibility import Source
from selfdistill.schedules import (
    ConstantSchedule,
    Duration,
    Period,
    RunningMeanSchedule,
    Schedule,
    Shape,
    SnapshotSchedule,
    as_schedule,
    make_schedule,
)
from selfdistill.teacher.ema import Buffers, make_teacher


@dataclass(frozen=True)
class TeacherPolicy:
    """How the teacher is made and how it moves.

    Attributes:
        momentum: m of θ_t ← m·θ_t + (1−m)·θ_s, a number in [0, 1] or a schedule over optimizer steps.
            0 every N steps and 1 between (``SnapshotSchedule``) is a hard copy; 1 is a frozen teacher.
        mode: ``"train"`` (batch statistics, as BYOL, MoCo and DINO-ResNet do) or ``"eval"`` (running
            statistics, as DINOv2 and data2vec do) while training. Evaluation always uses eval.
        buffers: float buffers; None takes ``"own"`` in train mode (the teacher's forward passes keep
            them) and ``"copy"`` in eval mode (nothing else would).
        source: ``"student"``: a copy of it at start; ``"none"``: no teacher, the student's own output
            behind a stop-gradient is the target.
        network: a frozen network of any architecture instead of the copy, whose outputs match
            (knowledge distillation); needs a momentum of 1.
    """

    momentum: Schedule | float = 0.996
    mode: Literal["train", "eval"] = "eval"
    buffers: Buffers | None = None
    source: Source = "student"
    network: nn.Module | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("mode", ("train", "eval")),
            ("buffers", (None, "own", "copy", "ema")),
            ("source", ("student", "none")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"teacher.{name}: {getattr(self, name)!r} given, allowed is {allowed}")
        if isinstance(self.momentum, float | int):
            _check_range("momentum", self.momentum)
        if self.network is not None and self.schedule != ConstantSchedule(1.0):
            raise ValueError(
                "teacher.momentum: a teacher of its own architecture cannot follow the student; "
                "use momentum 1 (teacher=frozen)"
            )

    @classmethod
    def ema(
        cls,
        momentum: float,
        momentum_end: float | None = None,
        *,
        shape: Shape = "cosine",
        duration: Duration = 1.0,
        running_mean: bool = False,
        mode: Literal["train", "eval"] = "eval",
        buffers: Buffers | None = None,
    ) -> TeacherPolicy:
        """An exponential moving average.

        Args:
            momentum: start value in [0, 1].
            momentum_end: value at the end of ``duration``; None keeps the start value.
            shape: ``cosine`` (BYOL, DINO), ``linear`` (I-JEPA, MSN) or ``constant`` (MoCo).
            duration: steps, fraction of the run or "N epochs" from the start value to the end value.
            running_mean: Mean Teacher's start, min(1 − 1/(k+1), τ_k): an exact mean of the first steps.
            mode: see the class.
            buffers: see the class.
        """
        end = momentum if momentum_end is None else momentum_end
        schedule = make_schedule(shape, momentum, end, duration)
        _check_range("momentum", momentum)
        _check_range("momentum_end", end)
        if running_mean:
            schedule = RunningMeanSchedule(schedule)
        return cls(schedule, mode=mode, buffers=buffers)

    @classmethod
    def snapshot(
        cls,
        every: Period,
        *,
        mode: Literal["train", "eval"] = "eval",
        buffers: Buffers | None = None,
    ) -> TeacherPolicy:
        """A hard copy of the student every so many steps (or "N epochs"): the older version of itself."""
        return cls(SnapshotSchedule(every), mode=mode, buffers=buffers)

    @classmethod
    def frozen(cls, network: nn.Module | None = None, *, mode: Literal["train", "eval"] = "eval") -> TeacherPolicy:
        """A teacher that never moves: the student at start, or ``network`` of any architecture."""
        return cls(ConstantSchedule(1.0), mode=mode, buffers="own", network=network)

    @classmethod
    def none(cls) -> TeacherPolicy:
        """No teacher: the student teaches itself behind a stop-gradient."""
        return cls(ConstantSchedule(1.0), source="none")

    @property
    def schedule(self) -> Schedule:
        return as_schedule(self.momentum)

    @property
    def moves(self) -> bool:
        """Whether there is a teacher that follows the student."""
        return self.source == "student" and self.network is None and self.schedule != ConstantSchedule(1.0)

    @property
    def buffer_rule(self) -> Buffers:
        if self.buffers is not None:
            return self.buffers
        return "own" if self.mode == "train" else "copy"

    def make(self, student: nn.Module) -> nn.Module | None:
        """The teacher network for ``student``; None where there is none."""
        if self.source == "none":
            return None
        return make_teacher(student if self.network is None else self.network)


def _check_range(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"teacher.{name}: {value} given, allowed is 0 to 1")
