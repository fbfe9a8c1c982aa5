"""The signs of each kind of collapse, and what usually mends it: from measures to a *badness*, without any memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Kind = Literal["diverging", "complete", "cluster", "uniform", "dimensional", "teacher_stale", "teacher_copying"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""The worst first."""

MENDS: dict[Kind, str] = {
    "diverging": "a lower optimizer.lr, a longer optimizer.warmup, or optimizer.clip=3",
    "complete": "a higher teacher.momentum, a lower optimizer.lr, a predictor, or objective=variance_covariance",
    "cluster": "centering (method.center_momentum=0.9) or method.centering=sinkhorn, a higher teacher temperature, "
    "or objective=me_max",
    "uniform": "a lower teacher temperature (or a lower method.epsilon), or a lower optimizer.lr",
    "dimensional": "a lower optimizer.lr, a higher teacher.momentum, or objective=variance_covariance or koleo",
    "teacher_stale": "a lower teacher.momentum, so that 1/(1 − momentum) is a small part of the run's steps",
    "teacher_copying": "a higher teacher.momentum: 0.9 to 0.99 over hundreds of steps, 0.99 to 0.9999 in long runs",
}


@dataclass(frozen=True)
class Thresholds:
    """Where a measure becomes a sign; set on runs of all methods of this package, see benchmarks/RESULTS.md.

    The start is the run's first measurement.

    Attributes:
        complete: spread of the features over that of the start, under which they are one constant vector.
        complete_projection: spread of the projections, 1 being isotropic, under which they are.
        dimensional: effective rank of the features over that of the start, under which they are a few lines.
        dimensional_rank: the same as a rank, for backbones that start with a low one. Healthy vision
            transformers on digits start at 3 to 5 and come down to 2.2.
        dimensional_both: effective rank of the features over that of the start, under which they are a few lines
            where the projections are, too: where their spread is under ``dimensional_projection``.
        dimensional_projection: spread of the projections, 1 being isotropic. Either falls so low in healthy runs,
            both at once do not.
        cluster: entropy of the mean answer over that of the start, under which one prototype takes all.
        uniform: information between image and prototype, as a share of ln K, under which answers carry none.
        stale: mean age of the teacher over the steps so far, above which it is an old one.
        stale_agreement: cosine of the networks' features under which an old teacher is also another one.
        stale_from: share of the run before which every teacher is young.
        copying: mean age in steps under which the teacher is the student.
        diverging: growth of the loss over the worst of the first measurements, as a share of it.
        diverging_gradient: the same of the gradient's norm, as a factor; both are asked for.
        recovery: how far on the good side a measure has to be before the alarm ends, as a factor.
    """

    complete: float = 0.1
    complete_projection: float = 0.02
    dimensional: float = 0.06
    dimensional_rank: float = 1.75
    dimensional_both: float = 0.2
    dimensional_projection: float = 0.15
    cluster: float = 0.25
    uniform: float = 4e-4
    stale: float = 0.6
    stale_agreement: float = 0.95
    stale_from: float = 0.2
    copying: float = 1.0
    diverging: float = 0.5
    diverging_gradient: float = 3.0
    recovery: float = 1.3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 1.0 if name == "recovery" else 0.0
            if not least <= value < math.inf:
                raise ValueError(f"CollapseMonitor.thresholds.{name}: {value} given, allowed is {least:g} or more")


@dataclass(frozen=True)
class Moment:
    """What a sign may look at.

    Attributes:
        now: the measures.
        start: those of the first measurement.
        early: the largest of each over the first measurements.
        before: those of the measurement before.
        step: index of the optimizer step.
        progress: share of the run that is done.
    """

    now: Mapping[str, float]
    start: Mapping[str, float]
    early: Mapping[str, float]
    before: Mapping[str, float]
    step: int
    progress: float


Sign = Callable[[Moment, Thresholds], "tuple[float, str] | None"]


def _low(value: float, limit: float) -> float:
    """Badness of a value that should be above ``limit``; one that is not finite says nothing here."""
    if not math.isfinite(value):
        return 0.0
    return limit / value if value > 0 else math.inf


def _diverging(at: Moment, limits: Thresholds) -> tuple[float, str] | None:
    loss, gradient = at.now.get("loss", 0.0), at.now.get("gradient_norm", 0.0)
    if not math.isfinite(loss) or not math.isfinite(gradient):
        return math.inf, f"loss {loss:g}, gradient norm {gradient:g}"
    if "loss" not in at.early or not at.early.get("gradient_norm"):
        return None
    before = at.early["loss"]
    growth = (loss - before) / (limits.diverging * max(abs(before), 1e-12))
    steeper = gradient / (limits.diverging_gradient * at.early["gradient_norm"])
    says = f"loss {loss:.3g} and gradient norm {gradient:.3g}, at first {before:.3g} and "
    return min(growth, steeper), f"{says}{at.early['gradient_norm']:.3g} at most"


def _complete(at: Moment, limits: Thresholds) -> tuple[float, str] | None:
    if "std" not in at.now:
        return None
    std, start = at.now["std"], at.start["std"]
    # a run that starts collapsed has no start to be held against
    features = _low(std, max(limits.complete * start, limits.complete_projection))
    projections = _low(at.now.get("projection_std", 1.0), limits.complete_projection)
    if projections > features:
        spread = at.now["projection_std"]
        return projections, f"the projections are nearly one vector (std×√P {spread:.2g}, isotropic is 1)"
    return features, f"the features are nearly one vector (std×√D {std:.2g}, at the start {start:.2g})"


def _cluster(at: Moment, limits: Thresholds) -> tuple[float, str] | None:
    if "prototype_entropy" not in at.now:
        return None
    entropy, start = at.now["prototype_entropy"], at.start["prototype_entropy"]
    saw = f"few prototypes take all images (entropy of the mean answer {entropy:.2g} of ln K, at the start {start:.2g})"
    return _low(entropy, limits.cluster * start), saw


def _uniform(at: Moment, limits: Thresholds) -> tuple[float, str] | None:
    if "prototype_information" not in at.now:
        return None
    if at.now["prototype_entropy"] < 0.5:
        return 0.0, ""
    # where the student is behind a teacher that still tells images apart, it learns
    value = max(at.now["prototype_information"], at.now.get("target_information", 0.0))
    saw = f"every image gets the same spread-out answer (information {max(value, 0):.1g} of ln K)"
    return _low(value, limits.uniform), saw


def _dimensional(at: Moment, limits: Thresholds) -> tuple[float, str] | None:
    if "rank" not in at.now:
        return None
    rank, start = at.now["rank"], at.start["rank"]
    alone = _low(rank, max(limits.dimensional * start, limits.dimensional_rank))
    spread = at.now.get("projection_std", 1.0)
    both = min(_low(rank, limits.dimensional_both * start), _low(spread, limits.dimensional_projection))
    saw = f"the features lie along few directions (effective rank {rank:.1f}, at the start {start:.1f})"
    if both > alone:
        saw += f", and the projections with them (std×√P {spread:.2g}, isotropic is 1)"
    return max(alone, both), saw


def _stale(at: Moment, limits: Thresholds) -> tuple[float, str] | None:
    if "teacher_age" not in at.now or at.step == 0 or at.progress < limits.stale_from:
        return None
    age = at.now["teacher_age"]
    # one that follows again needs its time to get younger
    if at.now.get("agreement", 0.0) > limits.stale_agreement or age < at.before.get("teacher_age", 0.0):
        return 0.0, ""
    saw = f"the teacher is {age:.0f} steps old on average after {at.step} (half-life {at.now.get('half_life', 0):.3g})"
    return age / (limits.stale * at.step), saw


def _copying(at: Moment, limits: Thresholds) -> tuple[float, str] | None:
    if "teacher_age" not in at.now or at.step < 10:
        return None
    age = at.now["teacher_age"]
    return _low(age, limits.copying), f"the teacher is the student of {age:.1f} steps ago on average"


SIGNS: dict[Kind, Sign] = {
    "diverging": _diverging,
    "complete": _complete,
    "cluster": _cluster,
    "uniform": _uniform,
    "dimensional": _dimensional,
    "teacher_stale": _stale,
    "teacher_copying": _copying,
}
