"""What the collapse atlas found, as a section of RESULTS.md."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from atlas_plan import EPOCHS, HELD_OUT, IN_TIME, METHODS, POINTS, ROLLBACK, SEEDS, Twin, healthy_job, job, twins
from runs import Summary, table

from selfdistill.callbacks import Thresholds
from selfdistill.callbacks.collapse_verdict import Verdict

Runs = dict[tuple[str, ...], Summary]


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
    healthy = {m: [watched.get(tuple(healthy_job(m, seed))) for seed in SEEDS] for m in METHODS}
    broken = [(twin, watched.get(tuple(job(twin)))) for twin in twins()]
    alarmed = [twin for twin, s in broken if twin.mend and s is not None and s.get("alarms")]
    mended = {twin: rolled.get((*job(twin), ROLLBACK)) for twin in alarmed}
    missing = sum(s is None for runs in healthy.values() for s in runs)
    missing += sum(s is None for _, s in broken) + sum(s is None for s in mended.values())
    missing += sum((*job(twin), HELD_OUT) not in watched for twin in twins())

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
    rows = []
    for twin, summary in broken:
        if summary is not None:
            rows.append(_row(Outcome(twin, summary, _reference(healthy[twin.method]), mended.get(twin))))
    seen = [Outcome(t, s, _reference(healthy[t.method]), mended.get(t)) for t, s in broken if _made(s)]
    again = [(twin, watched.get((*job(twin), HELD_OUT))) for twin in twins()]
    unseen = [Outcome(t, s, None, None) for t, s in again if _made(s)]
    parts.append(
        "**Broken twins.** A twin has collapsed where its k-NN on the test split ends at or below that of its random "
        "initialisation. “Collapsed from” is the first evaluation on the validation split from which that stays so, "
        "“end” where it never was; “delay” is from there to the alarm, as a share of the run, negative where the alarm "
        "came first; “right” asks for a kind that names what was broken. That a teacher copies or is stale is read off "
        "the momentum itself, and is counted apart.\n\n"
        "The thresholds were set on these runs of seed 0, on healthy ones of all three seeds and with k-NN in view "
        "(`dimensional_both` came after `byol_like` without its predictor had been missed): the rows of seed 0 say how "
        "well they fit, those of seed 1 how well they hold. “Alarms else” were raised where k-NN did not end that "
        "low.\n\n"
        + table(
            [
                "twins",
                "runs",
                "collapsed",
                "named",
                "rightly",
                "with an onset",
                "rightly, within a tenth",
                "alarms else",
            ],
            [
                [f"{what}, seed {seed}", *_counts([o for o in found if o.of_teacher is teacher])]
                for what, teacher in (("student broken", False), ("teacher broken", True))
                for seed, found in ((0, seen), (1, unseen))
            ],
        )
        + "\n\n"
        + _mended(seen)
        + f"\n\n{table(header, rows)}"
    )
    return "\n\n".join(parts)


def _made(summary: Summary | None) -> TypeGuard[Summary]:
    return summary is not None and "error" not in summary


def _reference(runs: list[Summary | None]) -> Summary | None:
    return next((s for s in runs if _made(s)), None)


@dataclass(frozen=True)
class Outcome:
    """What became of a twin.

    Attributes:
        twin: the plan.
        summary: of its run.
        healthy: of its method's whole run, None where it is not compared.
        mended: of its run with rollback.
    """

    twin: Twin
    summary: Summary
    healthy: Summary | None
    mended: Summary | None

    @property
    def of_teacher(self) -> bool:
        return all(kind.startswith("teacher_") for kind in self.twin.expected)

    @property
    def collapsed(self) -> bool:
        figures = self.summary["figures"]
        return figures["trained"]["knn"] <= figures["initial"]["knn"]

    @property
    def onset(self) -> int | None:
        return _onset(_metrics(self.summary), self.summary["figures"]["initial"]["knn"]) if self.collapsed else None

    @property
    def right(self) -> list[dict[str, Any]]:
        return [alarm for alarm in self.summary["alarms"] if alarm["kind"] in self.twin.expected]

    @property
    def delay(self) -> float | None:
        first = (self.right or self.summary["alarms"] or [None])[0]
        if first is None or self.onset is None:
            return None
        return (first["step"] - self.onset) / self.summary["optimizer_steps"]

    @property
    def hurt(self) -> bool:
        """Whether it ended farther below the healthy run than a rollback may."""
        return self.healthy is not None and _short_of(self.summary, self.healthy)


def _short_of(summary: Summary, healthy: Summary) -> bool:
    return summary["figures"]["trained"]["knn"] < healthy["figures"]["trained"]["knn"] - POINTS


def _counts(found: list[Outcome]) -> list[str]:
    collapsed = [outcome for outcome in found if outcome.collapsed]
    begun = [outcome for outcome in collapsed if outcome.onset is not None]
    in_time = [o for o in begun if o.right and o.delay is not None and o.delay <= IN_TIME]
    named, right = sum(bool(o.summary["alarms"]) for o in collapsed), sum(bool(o.right) for o in collapsed)
    other = sum(bool(o.summary["alarms"]) for o in found if not o.collapsed)
    return [str(n) for n in (len(found), len(collapsed), named, right, len(begun), len(in_time), other)]


def _mended(found: list[Outcome]) -> str:
    done = [o for o in found if _made(o.mended) and o.mended["mends"] and o.healthy is not None]
    hurt = [o for o in done if o.hurt]
    back = [o for o in hurt if o.mended and o.healthy and not _short_of(o.mended, o.healthy)]
    whole = [o for o in done if not o.hurt]
    harmed = [o for o in whole if o.mended and o.healthy and _short_of(o.mended, o.healthy)]
    return (
        f"After `action=rollback`, {len(back)} of the {len(hurt)} that had ended more than {100 * POINTS:.0f} points "
        f"below the healthy run ended within that; of {len(whole)} with an alarm that were not so far below, "
        f"{len(harmed)} ended farther below than that."
    )


def _row(outcome: Outcome) -> list[str]:
    twin, summary, healthy, mended = outcome.twin, outcome.summary, outcome.healthy, outcome.mended
    name = [f"`{twin.method}`", twin.name]
    if "error" in summary:
        # a loss that is not finite ends the run in one line of its own
        return [*name, f"stopped: {summary['error'][:90]}", *[""] * 10]
    metrics = _metrics(summary)
    final, initial = summary["figures"]["trained"]["knn"], summary["figures"]["initial"]["knn"]
    after = "–" if twin.mend and summary["alarms"] else ""
    if mended is not None:
        after = (
            "stopped" if "error" in mended else f"{mended['figures']['trained']['knn']:.3f} ({len(mended['mends'])}×)"
        )
    begun = str(outcome.onset) if outcome.onset is not None else "end"
    return [
        *name,
        f"{initial:.3f} → {final:.3f}",
        "" if healthy is None else f"{healthy['figures']['trained']['knn']:.3f}",
        begun if outcome.collapsed else "",
        _said(summary) or "none",
        "" if outcome.delay is None else f"{outcome.delay:+.2f}",
        "yes" if outcome.right else ("no" if summary["alarms"] or outcome.collapsed else ""),
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


def _onset(metrics: list[dict[str, str]], initial: float) -> int | None:
    """First evaluation of the last stretch at or below ``initial``; None where the last one is above it."""
    first = None
    for step, value in reversed(_series(metrics, "val/knn")):
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
