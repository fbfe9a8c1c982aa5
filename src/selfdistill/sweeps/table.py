"""The jobs of a sweep as a CSV file and in the terminal."""

from __future__ import annotations

import csv
from pathlib import Path

from selfdistill.files import whole_file
from selfdistill.report.sweep import Job, Sweep, over_seeds, rounded, said_std
from selfdistill.text_table import aligned


def write_csv(sweep: Sweep, file: Path) -> Path:
    """A row a job in the order of the command; figures that a job has not are empty."""
    names = list(dict.fromkeys(n for job in sweep.jobs for n in (job.summary.get("figures") or {}).get("trained", {})))
    heads = ["job", *sweep.swept, "status", "validation_knn", *(f"test_{n}" for n in names)]
    with whole_file(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow([*heads, "collapse", "train_seconds", "optimizer_steps", "run", "line"])
        for job in sweep.jobs:
            trained = (job.summary.get("figures") or {}).get("trained", {})
            writer.writerow(
                [
                    job.number,
                    *(job.settings.get(key, "") for key in sweep.swept),
                    job.status,
                    "" if job.objective is None else job.objective,
                    *(trained.get(name, "") for name in names),
                    job.summary.get("collapse") or "",
                    job.summary.get("seconds", {}).get("train", ""),
                    job.summary.get("optimizer_steps", ""),
                    job.run or "",
                    job.line,
                ]
            )
    return file


def terminal_table(sweep: Sweep) -> str:
    """The jobs with a figure, the best first, then mean ± std over seeds, then what else there is to say."""
    keys = sweep.swept
    ranked = sweep.ranked
    rest = [job for job in sweep.jobs if job.status == "finished" and job.objective is None]
    heads = [*keys, "k-NN", "test k-NN", "collapse", "s", "run"]
    rows = [_row(job, keys) for job in (*ranked, *rest)]
    blocks = [aligned(rows, heads, left=len(keys))] if rows else []
    groups = over_seeds(sweep)
    if "seed" in keys and any(len(group.values) > 1 for group in groups):
        shared = [key for key in keys if key != "seed"]
        means = [
            [*map(rounded, group.settings.values()), f"{group.mean:.4f}", said_std(group), str(len(group.values))]
            for group in groups
        ]
        blocks.append(aligned(means, [*shared, "mean k-NN", "std", "seeds"], left=len(shared)))
    told = [f"{job.status}: {job.label}: {job.line}".removesuffix(": ") for job in sweep.jobs if _told(job)]
    waiting = sum(job.status == "waiting" for job in sweep.jobs)
    blocks.append("\n".join([*told, *([f"not run: {waiting} jobs"] if waiting else [])]))
    return "\n\n".join(block for block in blocks if block)


def _told(job: Job) -> bool:
    return bool(job.line) if job.status == "finished" else job.status != "waiting"


def _row(job: Job, keys: list[str]) -> list[str]:
    test = (job.summary.get("figures") or {}).get("trained", {}).get("knn")
    return [
        *(rounded(job.settings.get(key, "")) for key in keys),
        "–" if job.objective is None else f"{job.objective:.4f}",
        "–" if test is None else f"{test:.4f}",
        job.summary.get("collapse") or "",
        f"{job.summary.get('seconds', {}).get('train', 0):.0f}",
        str(job.run),
    ]
