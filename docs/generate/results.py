"""Figures for the pages, read from benchmarks/RESULTS.md; none is typed by hand."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from markdown.extensions.toc import slugify

RESULTS = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"
_SECTION = re.compile(r"<!-- begin (.+?) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
_REMARK = re.compile(r"^#### (.+?)\n(.*?)(?=^#|^<!--|\Z)", re.MULTILINE | re.DOTALL)

Row = dict[str, str]


@cache
def sections() -> dict[str, str]:
    """Text between each pair of marks, by the name in the marks."""
    return dict(_SECTION.findall(RESULTS.read_text(encoding="utf-8")))


def section(name: str) -> str:
    """One of them.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in sections():
        raise ValueError(f"RESULTS.md: section {name!r} given, allowed is {', '.join(sections())}")
    return sections()[name]


def body(name: str) -> str:
    """A section without its heading."""
    return re.sub(r"\A\s*### .+\n", "", section(name)).strip()


def remarks(title: str) -> str:
    """What is said below a #### heading, in the words that stand there.

    Raises:
        ValueError: there is no such heading.
    """
    found = dict(_REMARK.findall(RESULTS.read_text(encoding="utf-8")))
    if title not in found:
        raise ValueError(f"RESULTS.md: remarks {title!r} given, allowed is {', '.join(found)}")
    return found[title].strip()


def tables(name: str) -> list[list[Row]]:
    """The tables of a section, each a list of rows by the headings of the columns."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section(name) + "\n", re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in block.splitlines()]
        found.append([dict(zip(head, [*row, *[""] * len(head)], strict=False)) for row in rows])
    return found


def grid(rows: list[Row], columns: dict[str, str]) -> str:
    """A Markdown table of ``columns`` (key of a row: its heading)."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(_whole(row.get(key, "")) for key in columns) + " |" for row in rows)])


def _whole(cell: str) -> str:
    """With spaces that do not break, where a number would be torn apart."""
    return cell.replace(" ± ", "\u00a0±\u00a0").replace(" → ", "\u00a0→\u00a0")


def figures(method: str) -> str:
    """What the method reached on the digits, beside its random initialisation and the pixels."""
    rows = tables("methods digits")[0]
    own = next(row for row in rows if row["method"] == f"`{method}`")
    first = next(r for r in rows if r["method"] == "random initialisation" and r["backbone"] == own["backbone"])
    chosen = [{**own, "method": f"**`{method}`**"}, first, next(r for r in rows if r["method"] == "raw pixels")]
    seconds = next(row["training, s"] for row in tables("seconds digits")[0] if row["method"] == f"`{method}`")
    alarms = f"; the collapse monitor raised an alarm in {own['alarms']} of them" if own["alarms"] else ""
    return (
        f"Digits, test split, backbone `{own['backbone']}`, mean ± standard deviation over three seeds{alarms}. One "
        f"run trains for {seconds} s on two CPU cores.\n\n"
        + grid(
            chosen,
            {"method": "representation", "k-NN": "k-NN", "linear": "linear", "1-shot": "1-shot", "5-shot": "5-shot"},
        )
        + "\n\nCommand and all methods: [results](../results.md#every-method-on-digits)."
    )


def collapses(method: str) -> str:
    """What breaking the method did to it, from the collapse atlas."""
    healthy, _, broken = tables("collapse atlas")
    own = [row for row in broken if row["method"] == f"`{method}`"]
    for row in own:
        start, end = (float(value) for value in row["k-NN"].split("→"))
        row["collapsed"] = "**yes**" if end <= start else "no"
    alarms = next(row["false alarms"] for row in healthy if row["method"] == f"`{method}`")
    return (
        "Measured in 30 epochs on digits, seed 0: k-NN on the test split from start to end of the run, beside that of "
        "the unbroken one. A run has collapsed where it ends at or below its start.\n\n"
        + grid(
            own,
            {
                "broken": "broken",
                "k-NN": "k-NN",
                "healthy": "unbroken",
                "collapsed": "collapsed",
                "alarm": "alarm @ step",
            }
            | {"after rollback": "after `action=rollback`"},
        )
        + f"\n\nAlarms in healthy runs: {alarms}. All runs: [the atlas](../results.md#collapse-atlas)."
    )


def missed() -> str:
    """Every row of RESULTS.md that says of itself that what was asked for was not reached."""
    rows = []
    for name in sections():
        for row in (row for table in tables(name) for row in table if row.get("reached") == "no"):
            found = row.get("found") or row["speed (quartiles)"]
            title = re.search(r"^### (.+)$", section(name), re.MULTILINE)
            assert title is not None
            rows.append({"where": title[1], "what": next(iter(row.values())), "found": found, "asked": row["asked"]})
    return grid(rows, {"where": "table", "what": "work", "found": "found", "asked": "asked"})


def contents() -> str:
    """Every table of RESULTS.md, linked."""
    titles = re.findall(r"^### (.+)$", RESULTS.read_text(encoding="utf-8"), re.MULTILINE)
    return "\n".join(f"- [{title}](results.md#{slugify(title, '-')})" for title in titles)
