"""Our k-NN vote against lightly's ``knn_predict``: time in turn in one process, memory in processes of their own.

pip install --no-deps --target <folder> lightly lightly_utils
PYTHONPATH=<folder> python benchmarks/knn.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from runs import table, write_section
from torch import Tensor

from selfdistill.evaluation import knn_predict

BANK, DIM, QUERIES = 50_000, 512, 4_096
SETTINGS = list(product((10, 1000), (20, 200), (256, 512)))
"""Classes, k, batch."""
TEMPERATURE = 0.07


def ours(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, batch: int) -> Tensor:
    return knn_predict(bank, labels, queries, k=k, temperature=TEMPERATURE)


def lightly(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, batch: int) -> Tensor:
    from lightly.utils.benchmarking import knn_predict as predict

    columns = F.normalize(bank, dim=1).T.contiguous()
    parts = (F.normalize(part, dim=1) for part in queries.split(batch))
    return torch.cat([predict(part, columns, labels, classes, k, TEMPERATURE)[:, 0] for part in parts])


SIDES: dict[str, Callable[..., Tensor]] = {"ours": ours, "lightly": lightly}


def data(classes: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features that carry their class faintly, so that votes are neither all right nor all wrong."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, DIM, generator=generator)
    labels = torch.randint(classes, (BANK,), generator=generator)
    asked = torch.randint(classes, (queries,), generator=generator)
    bank = torch.randn(BANK, DIM, generator=generator) + 0.3 * centers[labels]
    return bank, labels, torch.randn(queries, DIM, generator=generator) + 0.3 * centers[asked]


def ratio(classes: int, k: int, batch: int, queries: int, repeats: int) -> float:
    """Median seconds of lightly over median seconds of ours; their answers are compared."""
    bank, labels, asked = data(classes, queries)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    answers = {}
    for turn in range(repeats + 1):
        for name, side in SIDES.items():
            start = time.perf_counter()
            answers[name] = side(bank, labels, asked, classes, k, batch)
            if turn:  # the first is for warming up
                seconds[name].append(time.perf_counter() - start)
    agreement = (answers["ours"] == answers["lightly"]).double().mean().item()
    if agreement < 0.999:
        raise SystemExit(f"classes {classes}, k {k}: the answers agree on {agreement:.4f} of the queries only")
    return statistics.median(seconds["lightly"]) / statistics.median(seconds["ours"])


def peak(side: str, classes: int, k: int, batch: int) -> float:
    """MiB that one evaluation adds to the process that runs it."""
    command = [sys.executable, __file__, "--peak", side, *map(str, (classes, k, batch))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(side: str, classes: int, k: int, batch: int) -> float:
    bank, labels, queries = data(classes, QUERIES)
    small = torch.randn(300, DIM), torch.zeros(300, dtype=torch.int64), torch.randn(10, DIM)
    SIDES[side](*small, classes, k, batch)  # what libraries take once
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: the peak starts again from here
    before = resident("VmRSS")
    SIDES[side](bank, labels, queries, classes, k, batch)
    return resident("VmHWM") - before


def resident(entry: str) -> float:
    """MiB of this process, now (``VmRSS``) or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (found,) = (line for line in lines if line.startswith(entry))
    return int(found.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=4, metavar=("SIDE", "CLASSES", "K", "BATCH"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        side, *numbers = given.peak
        print(own_peak(side, *map(int, numbers)))
        return
    rows = []
    for classes, k, batch in SETTINGS:
        whole = ratio(classes, k, batch, QUERIES, given.repeats)
        single = ratio(classes, k, batch, batch, given.repeats)
        memory = [f"{peak(side, classes, k, batch):.0f}" for side in SIDES]
        rows.append([str(classes), str(k), str(batch), f"{whole:.1f}", f"{single:.1f}", *memory])
        print(*rows[-1], file=sys.stderr)
    header = ["classes", "k", "lightly's batch", f"speed, {QUERIES:,} queries", "speed, one batch",
              "ours, MiB", "lightly, MiB"]  # fmt: skip
    write_section(
        "knn",
        "### k-NN against lightly's `knn_predict`\n\n"
        f"`python benchmarks/knn.py`: a bank of {BANK:,} × {DIM} in float32, "
        f"{given.threads} thread{'s' * (given.threads > 1)}, lightly {version('lightly')}. Speed is "
        f"lightly's median time over ours, measured in turn, {given.repeats} times, each normalising its features; "
        f"memory is what {QUERIES:,} queries "
        "add to the process. Their answers agree on 99.9 % of the queries or more.\n\n"
        + table(header, rows)
        + "\n\nThe product of queries and bank bounds both. One batch alone pays for the bank's normalisation.",
    )


if __name__ == "__main__":
    main()
