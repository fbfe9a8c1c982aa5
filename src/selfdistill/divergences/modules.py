"""Divergences as modules: settings and schedules around the functions, and what each one promises."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from selfdistill.compatibility import Domain
from selfdistill.divergences import functional
from selfdistill.divergences.functional import Direction
from selfdistill.schedules import Clock, Schedule, as_schedule


class Divergence(nn.Module, ABC):
    """How far a student is from its teacher, one number a sample.

    A subclass declares what holds for it; where it has two temperatures, for equal ones.

    Attributes:
        domain: "features": made for embeddings. "logits": made for logits, and takes features too, as the
            logits of a softmax over their dimensions.
        symmetric: D(s, t) = D(t, s).
        zero_at_equality: D(x, x) = 0; otherwise the least value is above 0 and depends on the teacher.
        scale_invariant: D(a s, b t) = D(s, t) for a, b > 0.
    """

    domain: ClassVar[Domain]
    symmetric: ClassVar[bool]
    zero_at_equality: ClassVar[bool]
    scale_invariant: ClassVar[bool]

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        """Compare sample by sample; gradients flow to both.

        Args:
            student: [..., D].
            teacher: [..., D].
            clock: Where the run stands, for scheduled settings; None is step 0.

        Returns:
            [...], float32 (float64 if an input is).

        Raises:
            ValueError: The shapes differ, or a schedule left the allowed range.
        """


@final
class L2(Divergence):
    """See `functional.l2`."""

    domain = "features"
    symmetric = True
    zero_at_equality = True
    scale_invariant = False

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        return functional.l2(student, teacher)


@final
class NormalizedL2(Divergence):
    """See `functional.l2_normalized`."""

    domain = "features"
    symmetric = True
    zero_at_equality = True
    scale_invariant = True

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        return functional.l2_normalized(student, teacher)


@final
class Cosine(Divergence):
    """See `functional.cosine`."""

    domain = "features"
    symmetric = True
    zero_at_equality = True
    scale_invariant = True

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        return functional.cosine(student, teacher)


@final
class SmoothL1(Divergence):
    """See `functional.smooth_l1`.

    Args:
        beta: Where the quadratic part ends, in units of the features, > 0.

    Raises:
        ValueError: beta is out of range.
    """

    domain = "features"
    symmetric = True
    zero_at_equality = True
    scale_invariant = False

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        functional.check_positive("beta", beta)
        self.beta = beta

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        return functional.smooth_l1(student, teacher, beta=self.beta)


class _SoftmaxDivergence(Divergence):
    domain = "logits"
    scale_invariant = False

    def __init__(
        self, student_temperature: float | Schedule = 1.0, teacher_temperature: float | Schedule = 1.0
    ) -> None:
        super().__init__()
        self.student_temperature = as_temperature("student_temperature", student_temperature)
        self.teacher_temperature = as_temperature("teacher_temperature", teacher_temperature)

    def temperatures(self, clock: Clock | None) -> dict[str, float]:
        """Both temperatures now, by the names that the functions give them."""
        clock = clock or Clock()
        return {
            "student_temperature": self.student_temperature(clock),
            "teacher_temperature": self.teacher_temperature(clock),
        }


@final
class KL(_SoftmaxDivergence):
    """See `functional.kl`.

    Args:
        direction: "student_teacher" is KL(p_s‖p_t), "teacher_student" is KL(p_t‖p_s).
        student_temperature: A number > 0 or a schedule.
        teacher_temperature: A number > 0 or a schedule.

    Raises:
        ValueError: The direction is unknown or a temperature is out of range.
    """

    symmetric = False
    zero_at_equality = True

    def __init__(
        self,
        direction: Direction = "student_teacher",
        student_temperature: float | Schedule = 1.0,
        teacher_temperature: float | Schedule = 1.0,
    ) -> None:
        super().__init__(student_temperature, teacher_temperature)
        functional.check_direction(direction)
        self.direction: Direction = direction

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        return functional.kl(student, teacher, direction=self.direction, **self.temperatures(clock))


@final
class JS(_SoftmaxDivergence):
    """See `functional.js`.

    Args:
        student_temperature: A number > 0 or a schedule.
        teacher_temperature: A number > 0 or a schedule.

    Raises:
        ValueError: A temperature is out of range.
    """

    symmetric = True
    zero_at_equality = True

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        return functional.js(student, teacher, **self.temperatures(clock))


@final
class CrossEntropy(_SoftmaxDivergence):
    """See `functional.cross_entropy`.

    Args:
        student_temperature: A number > 0 or a schedule.
        teacher_temperature: A number > 0 or a schedule.

    Raises:
        ValueError: A temperature is out of range.
    """

    symmetric = False
    zero_at_equality = False

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        return functional.cross_entropy(student, teacher, **self.temperatures(clock))


@final
class FunctionDivergence(Divergence):
    """A user's function of (student, teacher), called in float32 or wider with autocast off.

    It promises nothing, and is taken wherever it is put: on logits as on features.

    Args:
        function: Maps two [..., D] to [...]; an nn.Module with that forward becomes a submodule. To pickle
            this module, give a function that can be imported by name.
    """

    domain = "logits"
    symmetric = False
    zero_at_equality = False
    scale_invariant = False

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, student: Tensor, teacher: Tensor, clock: Clock | None = None) -> Tensor:
        student, teacher = functional.as_pair(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            value = self.function(student, teacher)
        if value.shape != student.shape[:-1]:
            raise ValueError(
                f"the divergence function must return shape {list(student.shape[:-1])}, one number a sample, "
                f"got {list(value.shape)}; reduce the last dimension and no other"
            )
        return value


def as_divergence(value: Divergence | Callable[[Tensor, Tensor], Tensor]) -> Divergence:
    """`value` itself if it is a divergence, else the function in a `FunctionDivergence`.

    Raises:
        TypeError: It is neither, or a class where an instance is needed.
    """
    if isinstance(value, Divergence):
        return value
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            f"divergence must be a Divergence or a function (student, teacher) -> one number a sample, got "
            f"{value!r}; write KL() rather than KL"
        )
    return FunctionDivergence(value)


def as_temperature(name: str, value: float | Schedule) -> Schedule:
    """A schedule from a number > 0 or a schedule.

    Raises:
        ValueError: a number out of range; `name` names it.
    """
    if not isinstance(value, Schedule):
        functional.check_positive(name, value)
    return as_schedule(value)
