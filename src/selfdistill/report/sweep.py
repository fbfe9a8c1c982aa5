"""What a sweep left in its folder: the record of each job, and the runs."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfdistill.config import UserError
from selfdistill.files import write_text
from selfdistill.report.read import Series, read_series

Status = Literal["finished", "refused", "failed", "interrupted", "waiting"]


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: its place in the sweep.
        settings: the keys that vary and their values, as in the command.
        status: ``refused``: it cannot work, and left nothing; ``waiting``: the sweep was stopped before it.
        line: why it did not finish.
        run: the name of its folder inside the sweep's.
        summary: of its run.
        series: what it logged, by name.
    """

    number: int
    settings: dict[str, str]
    status: Status
    line: str = ""
    run: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)

    @property
    def objective(self) -> float | None:
        """k-NN accuracy on the validation split at the end; None without labels or an end."""
        return self.summary.get("validation_knn") if self.status == "finished" else None

    @property
    def label(self) -> str:
        return said_settings(self.settings) or f"job {self.number}"


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder.

    Attributes:
        name: of the folder.
        command: that started it.
        swept: the keys that vary.
        jobs: by number.
        total: jobs of the command; None where a search finds them as it goes.
    """

    name: str
    command: str
    swept: list[str]
    jobs: list[Job]
    total: int | None

    @property
    def ranked(self) -> list[Job]:
        """The jobs with an objective, the best first."""
        return sorted((job for job in self.jobs if job.objective is not None), key=lambda job: -(job.objective or 0.0))


@dataclass(frozen=True)
class Group:
    """Jobs that differ by their seed only.

    Attributes:
        settings: what they share.
        values: their objectives.
    """

    settings: dict[str, str]
    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def said_std(group: Group) -> str:
    return "–" if group.std is None else f"± {group.std:.4f}"


def over_seeds(sweep: Sweep) -> list[Group]:
    """The jobs with an objective, grouped by all that varies but the seed, the best mean first."""
    groups: dict[tuple[str, ...], Group] = {}
    for job in sweep.ranked:
        shared = {key: value for key, value in job.settings.items() if key != "seed"}
        groups.setdefault(tuple(shared.values()), Group(shared, [])).values.append(job.objective or 0.0)
    return sorted(groups.values(), key=lambda group: -group.mean)


def said_settings(settings: dict[str, str]) -> str:
    """``key=value key=value``, long numbers rounded."""
    return " ".join(f"{key}={rounded(value)}" for key, value in settings.items())


def rounded(value: str) -> str:
    """A number of many digits to six of them; anything else as it is."""
    try:
        return value if len(value) <= 8 else f"{float(value):.6g}"
    except ValueError:
        return value


def is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").is_file()


def write_job(folder: Path, job: Job) -> None:
    """Keep what came of a job; files of its run are not repeated."""
    kept = {name: value for name, value in asdict(job).items() if name not in ("summary", "series")}
    write_text(folder / "jobs" / f"{job.number:03d}.json", json.dumps(kept, indent=2) + "\n")


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder.

    Raises:
        UserError: ``folder`` holds no sweep, or one of its files is damaged.
    """
    try:
        about = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        jobs = [_job(folder, json.loads(f.read_text(encoding="utf-8"))) for f in sorted(folder.glob("jobs/*.json"))]
        total = None if about["jobs"] is None else len(about["jobs"])
        jobs.sort(key=lambda job: job.number)
        return Sweep(folder.resolve().name, about["command"], about["swept"], jobs, total)
    except (OSError, ValueError, TypeError, KeyError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"run: {str(folder)!r} given, the sweep's files cannot be read ({said})") from None


def _job(folder: Path, kept: dict[str, Any]) -> Job:
    job = Job(**kept)
    if job.run is None:
        return job
    run = folder / job.run
    summary = run / "summary.json"
    found = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    return Job(**kept | {"summary": found, "series": read_series(run / "metrics.csv")})
