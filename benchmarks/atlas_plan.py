"""What the collapse atlas runs: every method whole, and its twins with a part broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from selfdistill.config import CONF, check

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
EPOCHS = 30
COMMON = (
    "data=digits", f"trainer.max_epochs={EPOCHS}", "callbacks.collapse_monitor.every=5",
    "callbacks.online_knn.every_n_epochs=1",
)  # fmt: skip
SEEDS = (0, 1, 2)
WATCHING = ("callbacks.collapse_monitor.thresholds",)
"""What a run that only warns does not depend on: its log is judged by whatever the thresholds are today."""
ROLLBACK = "callbacks.collapse_monitor.action=rollback"
HELD_OUT = "seed=1"
"""Of the broken twins that no threshold was set on."""
POINTS = 0.02
"""A rollback has worked where it ends within so much of the healthy run's k-NN."""
IN_TIME = 0.1
"""An alarm is in time within this share of the run after the onset."""

DEGENERATE = ("complete", "dimensional", "uniform", "cluster")
LOW_RANK = ("complete", "dimensional")


@dataclass(frozen=True)
class Twin:
    """A run that differs from its method's healthy one in what should break it.

    Attributes:
        method: of the healthy run.
        name: what is broken.
        overrides: how.
        expected: kinds that name it rightly.
        mend: whether ``rollback`` knows what mends it.
    """

    method: str
    name: str
    overrides: tuple[str, ...]
    expected: tuple[str, ...]
    mend: bool = False


def twins() -> Iterator[Twin]:
    for method in METHODS:
        plain = check("train", ["data=digits", f"method={method}"]).plain
        rate = 30 * plain["optimizer"]["lr"]
        yield Twin(method, "learning rate × 30", (f"optimizer.lr={rate:g}",), ("diverging", *DEGENERATE), mend=True)
        if plain["teacher"].get("momentum") is not None:
            for value, kind in ((0.0, "teacher_copying"), (1.0, "teacher_stale")):
                overrides = (f"teacher.momentum={value}", f"teacher.momentum_end={value}")
                if method in ("ema_teacher", "multi_head"):
                    overrides += ("teacher.running_mean=false",)
                yield Twin(method, f"τ = {value:g}", overrides, (kind,), mend=True)
    yield Twin("byol_like", "no predictor", ("method._target_=benchmarks.twins.BYOLWithoutPredictor",), LOW_RANK, True)
    yield Twin("simsiam_like", "no predictor", ("method._target_=benchmarks.twins.SimSiamWithoutPredictor",), LOW_RANK)
    without = "method._target_=benchmarks.twins.SimSiamWithoutStopGradient"
    yield Twin("simsiam_like", "no stop-gradient", (without,), LOW_RANK)
    for method in ("dino_like", "dinov2_like", "ibot_like"):
        patch = method == "ibot_like"
        high = ("method.teacher_temperature=1.0",) + (("method.patch_temperature=1.0",) if patch else ())
        low = ("method.teacher_temperature=0.002",) + (("method.patch_temperature=0.002",) if patch else ())
        fixed = ("method.center_momentum=1.0",) + (("method.centering=center",) if method == "dinov2_like" else ())
        yield Twin(method, "no centering", fixed, ("cluster", "complete"), mend=True)
        yield Twin(method, "no sharpening", high, ("uniform", *LOW_RANK))
        yield Twin(method, "temperature too low", low, DEGENERATE)
    yield Twin("swav_like", "codes not sharp (ε = 1)", ("method.epsilon=1.0",), ("uniform", *LOW_RANK))
    yield Twin("swav_like", "temperature too high", ("method.temperature=10.0",), ("uniform", *LOW_RANK))
    yield Twin("msn_like", "me-max off", ("+weights.me_max=0.0",), ("cluster", "uniform", *LOW_RANK))
    yield Twin("msn_like", "no sharpening", ("method.sharpen=1.0",), ("uniform", *LOW_RANK))
    yield Twin("moco_like", "temperature too high", ("method.temperature=10.0",), LOW_RANK)
    yield Twin("mocov3_like", "temperature too high", ("method.temperature=10.0",), LOW_RANK)
    yield Twin("ressl_like", "no sharpening", ("method.teacher_temperature=1.0",), LOW_RANK)
    for method in ("byol_like", "ema_teacher"):
        yield Twin(method, "projector of rank 2", ("method.out_dim=2",), LOW_RANK)
        for rescue in ("variance_covariance", "koleo"):
            yield Twin(method, f"projector of rank 2, {rescue}", ("method.out_dim=2", f"objective={rescue}"), LOW_RANK)


def healthy_job(method: str, seed: int) -> list[str]:
    """Overrides of a method's whole run."""
    return [f"method={method}", *COMMON, f"seed={seed}"]


def job(twin: Twin) -> list[str]:
    """Overrides of a twin's run."""
    return [f"method={twin.method}", *twin.overrides, *COMMON]
