"""Every method whole and with a part broken: what the measures did, when k-NN fell, what the monitor said and when.

python benchmarks/collapse_atlas.py --parallel 2          # all of it; finished runs are not run again
python benchmarks/collapse_atlas.py --only dino_like byol_like --limit-minutes 30
"""

from __future__ import annotations

import argparse
import time

from atlas_plan import HELD_OUT, METHODS, ROLLBACK, SEEDS, WATCHING, healthy_job, job, twins
from atlas_report import Runs, judged, report
from runs import sitting, write_section


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

    broken = [job(twin) for twin in twins()]
    watched = made([*(healthy_job(m, 0) for m in METHODS), *broken], WATCHING)
    watched |= made([healthy_job(m, seed) for seed in SEEDS[1:] for m in METHODS], WATCHING)
    watched |= made([[*job(twin), HELD_OUT] for twin in twins()], WATCHING)
    # without an alarm, nothing is rolled back
    alarmed = [t for t in twins() if t.mend and (s := watched.get(tuple(job(t)))) and judged(s).get("alarms")]
    rolled = made([[*job(twin), ROLLBACK] for twin in alarmed])
    write_section("collapse atlas", report(watched, rolled))


if __name__ == "__main__":
    main()
