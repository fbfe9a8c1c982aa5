"""The table of all methods."""

from __future__ import annotations

from pathlib import Path

import yaml

from generate import results, settings

PAGES = Path(__file__).parents[1] / "methods"


def front_matter(path: Path) -> dict:
    """What stands between the two lines of dashes at the top of a page."""
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


def methods() -> str:
    """Name, idea in a line, kind of teacher, and the 1-shot accuracy, which tells methods apart on digits."""
    measured = {row["method"].strip("`"): row for row in results.tables("methods digits")[0]}
    rows = []
    for name in settings.names():
        meta = front_matter(PAGES / f"{name}.md")
        rows.append(
            {
                "name": f"[`{name}`]({name}.md)",
                "idea": meta["idea"],
                "backbone": "ViT" if measured[name]["backbone"] == "small_vit" else "any",
                "figure": measured[name]["1-shot"],
                "knn": measured[name]["k-NN"],
            }
        )
    columns = {"name": "`method=`", "idea": "idea", "backbone": "backbone", "knn": "k-NN", "figure": "1-shot"}
    return results.grid(rows, columns)
