"""Commands as hurried people write them (``fuzz.py``), checked in one process, and run: two tables for RESULTS.md.

python benchmarks/drawn.py                # both
python benchmarks/drawn.py commands       # one of checked, commands
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from faults import command
from fuzz import cases, verdict
from runs import table, write_section


def main() -> None:
    tables = {"checked": checked, "commands": real_commands}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=tables, help="both where none is named")
    given = parser.parse_args().table
    for name in [given] if given else tables:
        with tempfile.TemporaryDirectory() as place:
            write_section(name, tables[name](Path(place)))


def checked(place: Path, count: int = 2000) -> str:
    """How many drawn commands and files pass and are refused; what is neither, in full."""
    outcomes: Counter[tuple[str, str]] = Counter()
    wrong = []
    for number, case in enumerate(cases(count, 1)):
        said = verdict(case, place)
        outcomes[case.kind, said] += 1
        if said not in ("passed", "refused"):
            wrong.append(f"{case.kind}: {said}")
            print(f"{number} {case}: {said}", file=sys.stderr, flush=True)
        elif number % 100 == 99:
            print(f"{number + 1} of {count}", file=sys.stderr, flush=True)
    kinds = sorted({kind for kind, _ in outcomes})
    rows = [[kind, str(outcomes[kind, "passed"]), str(outcomes[kind, "refused"])] for kind in kinds]
    rows.append(
        ["all", *(str(sum(n for (_, s), n in outcomes.items() if s == said)) for said in ("passed", "refused"))]
    )
    return (
        f"### Drawn commands\n\n`python benchmarks/drawn.py checked`: {count:,} drawn commands and files "
        f"composed and checked in one process; neither passed nor refused in one line: {len(wrong)}.\n\n"
        + table(["what was done", "passed", "refused in one line"], rows)
        + "".join(f"\n- {line}" for line in wrong)
    )


def real_commands(place: Path, count: int = 50) -> str:
    """Drawn commands as processes: what is right runs a step, what is not is one line and leaves nothing."""
    outcomes: Counter[str] = Counter()
    # debug=fast is part of every command, and Hydra takes one choice of a group
    fit = (c for c in cases(10_000, 2) if c.text is None and not any(text.startswith("debug") for text in c.overrides))
    for number, case in zip(range(count), fit, strict=False):
        folder = place / f"command {number}"
        done = command(folder, *case.overrides, "trainer.max_steps=1", "data.limit=256")
        said = judged(done, folder)
        outcomes[said] += 1
        print(case.overrides, said, done.stderr.strip().splitlines()[-1:], file=sys.stderr, flush=True)
    rows = [[said, str(number)] for said, number in outcomes.most_common()]
    head = f"### Real commands\n\n`python benchmarks/drawn.py commands`: {count} drawn commands, each a process."
    return f"{head}\n\n{table(['outcome', 'commands'], rows)}"


def judged(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """What a command came to."""
    errors = [line for line in done.stderr.strip().splitlines() if not line.startswith("warning: ")]
    if done.returncode == 0:
        return "ran" if (folder / "summary.json").exists() else "ran, without its files"
    if len(errors) == 1 and errors[0].startswith("error: "):
        return "refused in one line" + (", but left a folder" if folder.exists() else "")
    return f"exit {done.returncode}: {' / '.join(errors[-2:])}"


if __name__ == "__main__":
    main()
