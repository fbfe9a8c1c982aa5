"""Every method whole and with a part broken: what the measures did, when k-NN fell, what the monitor said and when.

python benchmarks/collapse_atlas.py --parallel 2          # all of it; finished runs are not run again
python benchmarks/collapse_atlas.py --only dino_like byol_like --limit-minutes 30
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from runs import Summary, sitting, table, write_section

from selfdistill.callbacks import Thresholds
from selfdistill.callbacks.collapse_verdict import Verdict
from selfdistill.config import CONF, check

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
EPOCHS = 30
COMMON = ("data=digits", f"trainer.max_epochs={EPOCHS}", "callbacks.collapse_monitor.every=5")
SEEDS = (0, 1, 2)
WATCHING = ("callbacks.collapse_monitor.thresholds",)
"""What a run that only warns does not depend on: its log is judged by whatever the thresholds are today."""
ROLLBACK = "callbacks.collapse_monitor.action=rollback"
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


Runs = dict[tuple[str, ...], Summary]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=METHODS, metavar="METHOD", help="run these methods only")
    parser.add_argument("--limit-minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    given = parser.parse_args()
    unknown = sorted(set(given.only) - set(METHODS))
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} given, allowed is {', '.join(METHODS)}")
    end = time.monotonic() + 60 * given.limit_minutes

    def made(jobs: list[list[str]], ignore: tuple[str, ...] = ()) -> Runs:
        mine = [any(f"method={method}" in overrides for method in given.only) for overrides in jobs]
        left = max((end - time.monotonic()) / 60, 0)
        runs: Runs = {}
        for minutes, chosen in ((left, True), (0, False)):
            some = [overrides for overrides, own in zip(jobs, mine, strict=True) if own is chosen]
            runs |= sitting(some, minutes=minutes, parallel=given.parallel, threads=given.threads, ignore=ignore)
        return runs

    broken = [_job(twin) for twin in twins()]
    watched = made([*(_healthy(m, 0) for m in METHODS), *broken], WATCHING)
    watched |= made([_healthy(m, seed) for seed in SEEDS[1:] for m in METHODS], WATCHING)
    # without an alarm, nothing is rolled back
    alarmed = [t for t in twins() if t.mend and (s := watched.get(tuple(_job(t)))) and judged(s).get("alarms")]
    rolled = made([[*_job(twin), ROLLBACK] for twin in alarmed])
    write_section("collapse atlas", report(watched, rolled))


def _healthy(method: str, seed: int) -> list[str]:
    return [f"method={method}", *COMMON, f"seed={seed}"]


def _job(twin: Twin) -> list[str]:
    return [f"method={twin.method}", *twin.overrides, *COMMON]


def judged(summary: Summary) -> Summary:
    """With the alarms that today's default thresholds raise on what the run has logged."""
    if "error" in summary:
        return summary
    verdict = Verdict(Thresholds())
    for row in _metrics(summary):
        if row.get("monitor/rank"):
            measures = {key.removeprefix("monitor/"): float(v) for key, v in row.items() if "monitor/" in key and v}
            step = int(row["step"])
            verdict.judge(step, step / summary["optimizer_steps"], measures)
    return {**summary, "alarms": [asdict(alarm) for alarm in verdict.alarms]}


def report(watched: Runs, rolled: Runs) -> str:
    """The section of RESULTS.md; what has not been run yet is left out and counted."""
    watched = {overrides: judged(summary) for overrides, summary in watched.items()}
    healthy = {m: [watched.get(tuple(_healthy(m, seed))) for seed in SEEDS] for m in METHODS}
    broken = [(twin, watched.get(tuple(_job(twin)))) for twin in twins()]
    alarmed = [twin for twin, s in broken if twin.mend and s is not None and s.get("alarms")]
    mended = {twin: rolled.get((*_job(twin), ROLLBACK)) for twin in alarmed}
    missing = sum(s is None for runs in healthy.values() for s in runs)
    missing += sum(s is None for _, s in broken) + sum(s is None for s in mended.values())

    header = ["method", "runs", "k-NN at start", "k-NN", "std", "rank", "false alarms"]
    rows, false, made = [], 0, 0
    for method, summaries in healthy.items():
        good = [s for s in summaries if s is not None and "error" not in s]
        made += len(good)
        alarmed = [s for s in good if s["alarms"]]
        false += len(alarmed)
        if good:
            rows.append([f"`{method}`", str(len(good)), *_ends(good), "; ".join(_said(s) for s in alarmed) or "none"])
    parts = [
        f"### Collapse atlas\n\n`python benchmarks/collapse_atlas.py`: digits, {EPOCHS} epochs, the monitor at its "
        "default thresholds, measuring every 5 steps. k-NN on the test split. Arrows go from the start to the end of a "
        f"run. {missing} of the runs are still to be made.",
        f"**Healthy runs**, 3 seeds: an alarm in {false} of {made}.\n\n{table(header, rows)}",
    ]
    header = ["method", "broken", "k-NN", "healthy", "collapsed from", "alarm", "delay", "right", "std", "rank",
              "information", "teacher's age", "after rollback"]  # fmt: skip
    rows, counts = [], {"collapsed": 0, "right": 0, "in time": 0, "alarmed": 0, "mended": 0, "tried": 0}
    for twin, summary in broken:
        if summary is not None:
            reference = next((s for s in healthy[twin.method] if s is not None and "error" not in s), None)
            rows.append(_row(twin, summary, reference, mended.get(twin), counts))
    parts.append(
        "**Broken twins.** “Collapsed from” is the first step from which k-NN on the validation split stays at or "
        "below that of random initialisation, where the run also ends there; “delay” is from there to the alarm, as a "
        "share of the run, negative where the alarm came first; “right” asks for a kind that names what was broken.\n\n"
        f"{counts['collapsed']} twins collapsed by k-NN; {counts['alarmed']} of them were named, {counts['right']} "
        f"rightly, {counts['in time']} of these within a tenth of the run. After `action=rollback`, {counts['mended']} "
        f"of {counts['tried']} ended within {100 * POINTS:.0f} points of the healthy run.\n\n{table(header, rows)}"
    )
    return "\n\n".join(parts)


def _row(
    twin: Twin, summary: Summary, healthy: Summary | None, mended: Summary | None, counts: dict[str, int]
) -> list[str]:
    name = [f"`{twin.method}`", twin.name]
    if "error" in summary:
        # a loss that is not finite ends the run in one line of its own
        return [*name, f"stopped: {summary['error'][:90]}", *[""] * 10]
    metrics = _metrics(summary)
    steps = summary["optimizer_steps"]
    final, initial = summary["figures"]["trained"]["knn"], summary["figures"]["initial"]["knn"]
    onset = _onset(metrics, initial) if final <= initial else None
    right = [alarm for alarm in summary["alarms"] if alarm["kind"] in twin.expected]
    first = (right or summary["alarms"] or [None])[0]
    delay = None if first is None or onset is None else (first["step"] - onset) / steps
    if onset is not None:
        counts["collapsed"] += 1
        counts["alarmed"] += first is not None
        counts["right"] += bool(right)
        counts["in time"] += bool(right) and delay is not None and delay <= IN_TIME
    after = ""
    if mended is not None and "error" in mended:
        after = "stopped"
    elif mended is not None:
        knn = mended["figures"]["trained"]["knn"]
        after = f"{knn:.3f} ({len(mended['mends'])}×)"
        if mended["mends"] and healthy is not None:
            counts["tried"] += 1
            counts["mended"] += knn >= healthy["figures"]["trained"]["knn"] - POINTS
    elif twin.mend and summary["alarms"]:
        after = "–"
    return [
        *name,
        f"{initial:.3f} → {final:.3f}",
        "" if healthy is None else f"{healthy['figures']['trained']['knn']:.3f}",
        "" if onset is None else str(onset),
        _said(summary) or "none",
        "" if delay is None else f"{delay:+.2f}",
        "yes" if right else ("no" if first is not None or onset is not None else ""),
        *(_course(metrics, key) for key in ("std", "rank", "prototype_information", "teacher_age")),
        after,
    ]


def _said(summary: Summary) -> str:
    return ", ".join(f"{alarm['kind']} @ {alarm['step']}" for alarm in summary["alarms"])


def _metrics(summary: Summary) -> list[dict[str, str]]:
    with open(Path(summary["folder"]) / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _series(metrics: list[dict[str, str]], key: str) -> list[tuple[int, float]]:
    return [(int(float(row["step"])), float(row[key])) for row in metrics if row.get(key)]


def _onset(metrics: list[dict[str, str]], initial: float) -> int:
    """First evaluation of the last stretch at or below ``initial``; the last one where validation is above it."""
    points = _series(metrics, "val/knn")
    first = points[-1][0]
    for step, value in reversed(points):
        if value > initial:
            break
        first = step
    return first


def measured(summary: Summary, key: str) -> list[tuple[int, float]]:
    """What a run has logged under ``key``: (step, value)."""
    return _series(_metrics(summary), key)


def _course(metrics: list[dict[str, str]], key: str) -> str:
    points = _series(metrics, f"monitor/{key}")
    return f"{points[0][1]:.2g} → {points[-1][1]:.2g}" if points else ""


def _ends(runs: list[Summary]) -> list[str]:
    metrics = _metrics(runs[0])
    figures = [sum(run["figures"][which]["knn"] for run in runs) / len(runs) for which in ("initial", "trained")]
    return [*(f"{value:.3f}" for value in figures), _course(metrics, "std"), _course(metrics, "rank")]


if __name__ == "__main__":
    main()
