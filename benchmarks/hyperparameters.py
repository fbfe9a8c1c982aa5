"""1-shot accuracy, age of the teacher and collapse over the ranges of the hyper-parameters.

python benchmarks/hyperparameters.py --parallel 2         # finished runs are not run again
python benchmarks/hyperparameters.py --limit-minutes 30
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from atlas_plan import WATCHING
from atlas_report import judged
from runs import Summary, sitting, table, write_section

MOMENTA = (0, 0.9, 0.99, 0.996, 0.999, 0.9999, 1)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TEMPERATURES = (0.04, 0.1, 0.5, 1.0)
WEIGHTS = (0.5, 1.0, 2.0)
COMMON = ("data=digits", "trainer.max_epochs=20", "callbacks.collapse_monitor.every=5")

Runs = dict[tuple[str, ...], Summary]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    given = parser.parse_args()
    jobs = [_momentum(momentum, rate) for momentum in MOMENTA for rate in RATES]
    jobs += [_temperature(temperature, weight) for temperature in TEMPERATURES for weight in WEIGHTS]
    runs = sitting(jobs, minutes=given.limit_minutes, parallel=given.parallel, threads=given.threads, ignore=WATCHING)
    write_section("hyper-parameters", report({overrides: judged(summary) for overrides, summary in runs.items()}))


def report(runs: Runs) -> str:
    """The section of RESULTS.md; a dash stands where no run has been made yet."""
    first = [[f"{m:g}", *(_cell(runs.get(tuple(_momentum(m, rate))), teacher=True) for rate in RATES)] for m in MOMENTA]
    second = [
        [f"{t:g}", *(_cell(runs.get(tuple(_temperature(t, w))), teacher=False) for w in WEIGHTS)] for t in TEMPERATURES
    ]
    return (
        "### Hyper-parameters\n\n`python benchmarks/hyperparameters.py`: digits, 20 epochs of 9 steps, one seed, test "
        "split. Each cell: 1-shot accuracy, mean age of the teacher in steps at the end, and what the collapse monitor "
        "named.\n\n**`byol_like`, constant momentum (down) × learning rate (across).** The typical ranges are .99 to "
        f".9999 and 1e-4 to 1e-3.\n\n{table(['momentum', *(f'{r:g}' for r in RATES)], first)}\n\n"
        "**`byol_like objective=contrastive`, its temperature (down) × its weight (across).** The typical ranges are "
        f".1 to 1 and .5 to 2.\n\n{table(['temperature', *(f'{w:g}' for w in WEIGHTS)], second)}"
    )


def _momentum(momentum: float, rate: float) -> list[str]:
    return [
        "method=byol_like",
        f"teacher.momentum={momentum}",
        f"teacher.momentum_end={momentum}",
        f"optimizer.lr={rate}",
        *COMMON,
    ]


def _temperature(temperature: float, weight: float) -> list[str]:
    return [
        "method=byol_like",
        "objective=contrastive",
        f"objective.contrastive.temperature={temperature}",
        f"objective.weight={weight}",
        *COMMON,
    ]


def _cell(summary: Summary | None, *, teacher: bool) -> str:
    if summary is None:
        return "–"
    if "error" in summary:
        return f"stopped: {summary['error'][:60]}"
    parts = [f"{summary['figures']['trained']['one_shot']:.3f}"]
    if teacher:
        parts.append(f"{_age(summary):.0f}")
    if summary["alarms"]:
        parts.append(", ".join(dict.fromkeys(alarm["kind"] for alarm in summary["alarms"])))
    return " · ".join(parts)


def _age(summary: Summary) -> float:
    with open(Path(summary["folder"]) / "metrics.csv", encoding="utf-8") as file:
        ages = [float(row["monitor/teacher_age"]) for row in csv.DictReader(file) if row.get("monitor/teacher_age")]
    return ages[-1] if ages else 0.0


if __name__ == "__main__":
    main()
