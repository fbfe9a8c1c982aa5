"""What is done to the command, and what it gives: a table of faults for RESULTS.md.

python benchmarks/faults.py                                # all: 2,000 commands in this process, 50 real, faults
python benchmarks/faults.py --fuzz 0 --commands 0          # the faults alone
python benchmarks/faults.py --only full,home               # some of them
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz import cases, verdict
from runs import ROOT, table, write_section

FAST = ("debug=fast", "trainer.accelerator=cpu", "evaluation.draws=2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=2000, help="commands and files checked in this process")
    parser.add_argument("--commands", type=int, default=50, help="of them run as real commands")
    parser.add_argument("--only", default="", help="names of faults, with commas")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(FAULTS)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            fault, what = FAULTS[name]
            folder = Path(place) / name
            folder.mkdir()
            rows.append([what, fault(folder)])
            print(rows[-1], flush=True)
        said = [fuzzed(given.fuzz, Path(place)), *real_commands(given.commands, Path(place))]
    write_section(
        "faults",
        "### Faults\n\n`python benchmarks/faults.py`: what was done, and what came of it (exit code; its line).\n\n"
        + table(["fault", "outcome"], rows)
        + "".join(f"\n\n{text}" for text in said if text),
    )


def fuzzed(count: int, place: Path) -> str:
    """How many of ``count`` drawn commands pass and are refused; what is neither, in full."""
    if not count:
        return ""
    outcomes = Counter((case.kind, said) for case in cases(count, 1) if (said := verdict(case, place)))
    kinds = sorted({kind for kind, _ in outcomes})
    wrong = [f"{kind}: {said}" for kind, said in outcomes if said not in ("passed", "refused")]
    rows = [[kind, str(outcomes[kind, "passed"]), str(outcomes[kind, "refused"])] for kind in kinds]
    head = (
        f"{count:,} commands and files composed and checked in one process; neither passed nor refused: {len(wrong)}."
    )
    return f"{head}\n\n{table(['what was done', 'passed', 'refused in one line'], rows)}" + "".join(
        f"\n- {line}" for line in wrong
    )


def real_commands(count: int, place: Path) -> Iterator[str]:
    """Drawn commands as processes: what is right runs a step, what is not is one line and leaves nothing."""
    if not count:
        return
    outcomes: Counter[str] = Counter()
    drawn = (case for case in cases(10_000, 2) if case.text is None)
    for number, case in zip(range(count), drawn, strict=False):
        folder = place / f"command {number}"
        done = command(folder, *case.overrides, "trainer.max_steps=1", "data.limit=256")
        outcomes[judged(done, folder)] += 1
        print(case.overrides, judged(done, folder), flush=True)
    yield (
        f"{count} drawn commands as processes: " + "; ".join(f"{n} {said}" for said, n in outcomes.most_common()) + "."
    )


def judged(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """What a command came to."""
    errors = [line for line in done.stderr.strip().splitlines() if not line.startswith("warning: ")]
    if done.returncode == 0:
        return "ran" if (folder / "summary.json").exists() else "ran, without its files"
    if len(errors) == 1 and errors[0].startswith("error: "):
        return "refused in one line" + (", but left a folder" if folder.exists() else "")
    return f"exit {done.returncode}: {' / '.join(errors[-2:])}"


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m src.train`` into ``folder``, a step or two."""
    return subprocess.run(
        [*program(), *FAST, *arguments, f"hydra.run.dir='{folder}'"],
        cwd=ROOT,
        env=surroundings(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def program() -> list[str]:
    return [sys.executable, "-m", "src.train"]


def surroundings(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def told(done: subprocess.CompletedProcess[str], *secret: Path) -> str:
    """Exit code and last line, without the paths of this machine."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    text = lines[-1] if lines else ""
    for path in secret:
        text = text.replace(str(path), "…")
    trace = "; a traceback" if "Traceback" in done.stderr else ""
    return f"{done.returncode}{trace}; {text}" if done.returncode else "0; runs to its end"


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory at ``folder``; root only."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def read_only(folder: Path) -> str:
    with mounted(folder, "size=1m,ro"):
        return told(command(folder / "run"), folder)


def full(folder: Path, size: str = "256k") -> str:
    with mounted(folder, f"size={size}"):
        done = command(folder / "run")
        left = sorted(p.name for p in (folder / "run").iterdir()) if (folder / "run").exists() else []
        return f"{told(done, folder)}; left: {', '.join(left) or 'nothing'}"


def full_later(folder: Path) -> str:
    return full(folder, "3m")


def no_home(folder: Path) -> str:
    return told(command(folder / "run", HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent/cache"), folder)


def no_network(folder: Path) -> str:
    done = subprocess.run(
        ["unshare", "-n", *program(), *FAST, "backbone=resnet18", f"hydra.run.dir='{folder}/run'"],
        cwd=ROOT,
        env=surroundings({}),
        capture_output=True,
        text=True,
        check=False,
    )
    return told(done, folder)


def no_account(folder: Path) -> str:
    return told(command(folder / "run", "logger=wandb", HOME=str(folder), WANDB_API_KEY=""), folder)


def odd_path(folder: Path) -> str:
    return told(command(folder / "ein Lauf – ünïcode 雪"), folder)


def twice(folder: Path) -> str:
    """Two runs at once into one folder."""
    arguments = [*program(), *FAST, f"hydra.run.dir='{folder}/run'"]
    both = [
        subprocess.Popen(arguments, cwd=ROOT, env=surroundings({}), stdout=-1, stderr=-1, text=True) for _ in range(2)
    ]
    ends = []
    for process in both:
        out, errors = process.communicate()
        ends.append(told(subprocess.CompletedProcess(arguments, process.returncode, out, errors), folder))
    return " // ".join(sorted(ends))


def interrupted(folder: Path) -> str:
    """Ctrl-C after so many seconds of a run: while it imports, builds, trains."""
    ends: Counter[str] = Counter()
    for seconds in (0.3, 1, 2, 4, 8, 12, 16):
        run = folder / f"after {seconds}"
        arguments = [*program(), "trainer.accelerator=cpu", "trainer.max_epochs=20", f"hydra.run.dir='{run}'"]
        process = subprocess.Popen(arguments, cwd=ROOT, env=surroundings({}), stdout=-1, stderr=-1, text=True)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
        end = told(subprocess.CompletedProcess(arguments, process.returncode, out, errors), run)
        ends[f"{end}, {'a checkpoint' if list(run.glob('checkpoints/last.ckpt')) else 'no checkpoint'}"] += 1
        shutil.rmtree(run, ignore_errors=True)
    return " // ".join(f"{count}×: {end}" for end, count in ends.items())


Fault = Callable[[Path], str]
FAULTS: dict[str, tuple[Fault, str]] = {
    "read-only": (read_only, "the output folder is read-only"),
    "full": (full, "the disk is full at the first checkpoint (256 kB)"),
    "full-later": (full_later, "the disk fills up while the run writes its files (3 MB)"),
    "home": (no_home, "there is no home directory"),
    "network": (no_network, "there is no network"),
    "account": (no_account, "logger=wandb without an account"),
    "path": (odd_path, "spaces, umlauts and Chinese in the path"),
    "twice": (twice, "two runs at once into one folder"),
    "interrupt": (interrupted, "Ctrl-C after 0.3, 1, 2, 4, 8, 12, 16 s"),
}


if __name__ == "__main__":
    main()
