"""What is done to the command, and what it gives: a table of faults for RESULTS.md.

python benchmarks/faults.py                       # all of them
python benchmarks/faults.py --only full,home      # some, printed alone
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import ROOT, table, write_section

from selfdistill.config import UserError

FAST = ("debug=fast", "trainer.accelerator=cpu", "evaluation.draws=2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of faults, with commas: printed, RESULTS.md stays as it is")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if given.only:
            print(inflicted(given.only.split(","), Path(place)))
            return
        write_section(
            "faults",
            "### Faults\n\n`python benchmarks/faults.py`: what was done, and what came of it (exit code; its line).\n\n"
            + inflicted(FAULTS, Path(place)),
        )


def inflicted(names: Iterable[str], place: Path) -> str:
    """A row for each fault."""
    rows = []
    for name in names:
        fault, what = FAULTS[name]
        folder = place / name
        folder.mkdir()
        rows.append([what, fault(folder)])
        print(rows[-1], file=sys.stderr, flush=True)
    return table(["fault", "outcome"], rows)


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
    code = 128 - done.returncode if done.returncode < 0 else done.returncode  # as the shell tells it
    return f"{code}{trace}; {text}" if code else "0; runs to its end"


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


def full(folder: Path, size: str = "256k", epochs: int = 1) -> str:
    with mounted(folder, f"size={size}"):
        done = command(folder / "run", f"trainer.max_epochs={epochs}")
        left = sorted(p.name for p in (folder / "run").glob("**/*") if p.is_file() and p.parent.name != "pictures")
        return f"{told(done, folder)}; left: {', '.join(left) or 'nothing'}"


def full_later(folder: Path) -> str:
    return full(folder, "27m", epochs=3)


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


def interrupted(folder: Path, moments: int = 12) -> str:
    """Ctrl-C at moments spread over a run, from its first import to its last figures."""
    ends: Counter[str] = Counter()
    longer = ("trainer.max_epochs=20", "trainer.limit_train_batches=4")
    begun = time.monotonic()
    command(folder / "whole", *longer)
    whole = time.monotonic() - begun
    for moment in range(moments):
        run = folder / f"moment {moment}"
        arguments = [*program(), *FAST, *longer, f"hydra.run.dir='{run}'"]
        process = subprocess.Popen(arguments, cwd=ROOT, env=surroundings({}), stdout=-1, stderr=-1, text=True)
        time.sleep(whole * (moment + 0.2) / moments)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
        end = told(subprocess.CompletedProcess(arguments, process.returncode, out, errors), run)
        left = "a checkpoint" if list(run.glob("checkpoints/last.ckpt")) else "a folder" if run.exists() else "nothing"
        ends[f"{end}, leaving {left}"] += 1
        print(moment, end, left, file=sys.stderr, flush=True)
    return " // ".join(f"{count}× {end}" for end, count in ends.items())


def damaged(folder: Path, count: int = 300) -> str:
    """A run's checkpoint with a flipped bit, cut short, or another pickle in its place; one of each as a command."""
    import torch

    from selfdistill.checkpoint import read_checkpoint

    command(folder / "run")
    whole = (folder / "run" / "checkpoints" / "last.ckpt").read_bytes()
    trace = folder / "code ran"
    draw = random.Random(0)

    def flipped() -> bytes:
        at = draw.randrange(len(whole))
        return whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :]

    def foreign() -> bytes:
        file = io.BytesIO()
        torch.save({"state_dict": Foreign(trace)}, file)
        return file.getvalue()

    kinds = {
        "bit flipped": flipped,
        "cut short": lambda: whole[: draw.randrange(len(whole))],
        "foreign pickle": foreign,
    }
    ends: Counter[str] = Counter()
    file = folder / "damaged.ckpt"
    for name, damage in kinds.items():
        for _ in range(count // len(kinds)):
            file.write_bytes(damage())
            try:
                read_checkpoint("ckpt_path", str(file))
                ends[f"{name}: read"] += 1
            except UserError:
                ends[f"{name}: refused"] += 1
        file.write_bytes(damage())
        done = command(folder / f"from {name}", f"ckpt_path='{file}'")
        ends[f"{name}, as a command: {told(done, folder)}"] += 1
    ran = "code of it ran" if trace.exists() else "no code of it ran"
    return f"{' // '.join(f'{number}× {end}' for end, number in ends.items())}; {ran}"


@dataclass(frozen=True)
class Foreign:
    """What a hostile file holds: reading it without care makes a file."""

    trace: Path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


Fault = Callable[[Path], str]
FAULTS: dict[str, tuple[Fault, str]] = {
    "read-only": (read_only, "the output folder is read-only"),
    "full": (full, "the disk is full at the first checkpoint (256 kB)"),
    "full-later": (
        full_later,
        "the disk fills up later: the first checkpoints fit, the next not (27 MB, 3 epochs)",
    ),
    "home": (no_home, "there is no home directory"),
    "network": (no_network, "there is no network"),
    "account": (no_account, "logger=wandb without an account"),
    "path": (odd_path, "spaces, umlauts and Chinese in the path"),
    "twice": (twice, "two runs at once into one folder"),
    "interrupt": (interrupted, "Ctrl-C at 12 moments of a run, from its first import to its last figures"),
    "damaged": (damaged, "a checkpoint with a flipped bit, cut short, or another pickle"),
}


if __name__ == "__main__":
    main()
