"""Every method on a small data set, beside raw pixels, random initialisation and a supervised twin.

python benchmarks/methods.py                 # data=digits, 3 seeds; finished runs are not run again
python benchmarks/methods.py --data shapes
python benchmarks/methods.py --timing        # seconds of each method, alone on two threads
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import yaml
from runs import Summary, cell, run_all, table, write_section

from selfdistill.config import CONF

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
FIGURES = ("knn", "linear", "one_shot", "five_shot")
TITLES = ("k-NN", "linear", "1-shot", "5-shot")
TWIN = ["method=byol_like", "objective=supervised", "+weights.distill=0.0"]
"""The same network, views and steps, but labels instead of a teacher."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timing", action="store_true")
    given = parser.parse_args()
    common = [f"data={given.data}", "evaluation.linear=true"]
    variants = {method: [f"method={method}"] for method in given.methods}
    if given.methods == METHODS:
        variants["SimCLR-like (`mocov3_like teacher=none`)"] = ["method=mocov3_like", "teacher=none"]
        variants["supervised twin"] = TWIN
        variants["supervised twin, small ViT"] = [*TWIN, "backbone=small_vit"]
    if given.timing:
        write_section(f"seconds {given.data}", timing(given.data, given.methods, given.seeds))
        return
    jobs = [(name, [*o, *common, f"seed={s}"]) for s in range(given.seeds) for name, o in variants.items()]
    all_overrides = [overrides for _, overrides in jobs]
    # the monitors' settings change no figure
    watching = ("callbacks", "logger")
    summaries = run_all(all_overrides, parallel=given.parallel, threads=given.threads, ignore=watching)
    results: dict[str, list[Summary]] = defaultdict(list)
    for (name, _), summary in zip(jobs, summaries, strict=True):
        results[name].append(summary)
    if given.methods == METHODS:
        write_section(f"methods {given.data}", report(given.data, results))


def timing(data: str, methods: list[str], seed: int) -> str:
    """Seconds of training of each method's default command, one run after the other."""
    jobs = [[f"method={method}", f"data={data}", f"seed={seed}"] for method in methods]
    seconds = {s["method"]: s["seconds"]["train"] for s in run_all(jobs, threads=2, ignore=("callbacks", "logger"))}
    rows = [[f"`{method}`", f"{value:.0f}"] for method, value in seconds.items()]
    return (
        f"### Seconds of training on {data}\n\n`python benchmarks/methods.py --data {data} --timing`: two threads on "
        f"two CPU cores, nothing beside it.\n\n{table(['method', 'training, s'], rows)}"
    )


def report(data: str, results: dict[str, list[Summary]]) -> str:
    """The section of RESULTS.md."""
    rows = []
    pixels: dict[str, float] = {}
    initial: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name, runs in results.items():
        good = [run for run in runs if "error" not in run]
        if not good:
            rows.append([f"`{name}`", f"failed: {runs[0]['error']}", *[""] * (len(FIGURES) + 2)])
            continue
        pixels = good[0]["figures"]["raw_pixels"]
        for run in good:
            initial[_backbone(run)].append(run["figures"]["initial"])
        trained = [run["figures"]["trained"] for run in good]
        beats = [_beats(good, "initial"), _beats(good, "raw_pixels")]
        cells = [cell([figures[key] for figures in trained]) for key in FIGURES]
        collapsed = sum(run["collapse"] is not None for run in good)
        rows.append([name if " " in name else f"`{name}`", _backbone(good[0]), *cells, *beats, str(collapsed or "")])
    for backbone, figures in sorted(initial.items()):
        cells = [cell([f[key] for f in figures]) for key in FIGURES]
        rows.append(["random initialisation", backbone, *cells, "", "", ""])
    rows.append(["raw pixels", "", *[f"{pixels[key]:.3f}" for key in FIGURES], "", "", ""])
    header = ["method", "backbone", *TITLES, "beats initialisation", "beats pixels (1-shot)", "alarms"]
    seeds = max(len(runs) for runs in results.values())
    return (
        f"### Every method on {data}\n\n`python benchmarks/methods.py --data {data}`: the default command of each "
        f"method, test split, mean ± standard deviation over {seeds} seeds. “Beats” compares the means; "
        f"initialisation at both 1-shot and 5-shot.\n\n{table(header, rows)}"
    )


def _backbone(run: Summary) -> str:
    config = yaml.safe_load((Path(run["folder"]) / "config.yaml").read_text(encoding="utf-8"))
    return str(config["backbone"]["name"])


def _beats(runs: list[Summary], row: str) -> str:
    keys = ("one_shot", "five_shot") if row == "initial" else ("one_shot",)

    def mean(which: str, key: str) -> float:
        return sum(run["figures"][which][key] for run in runs) / len(runs)

    return "yes" if all(mean("trained", key) > mean(row, key) for key in keys) else "no"


if __name__ == "__main__":
    main()
