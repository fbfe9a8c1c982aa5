"""Which parts go with which method: ``python docs/compatibility.py`` builds every pair and writes compatibility.md.

A cell is what happens when the pair is built on the digits, the other parts being such as suit both. ``--check``
compares with the file and ends with 1 where it is out of date.
"""

from __future__ import annotations

import copy
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from selfdistill.assembly import build_method, read_masks
from selfdistill.config import CONF, check
from selfdistill.methods.coupling import couplings

PAGE = Path(__file__).with_suffix(".md")
BACKBONES = {"small_cnn": "CNN (`small_cnn`)", "small_vit": "ViT (`small_vit`)"}
# a refusal says: setting: what was given, why not; what to choose
REFUSAL = re.compile(
    r"(?P<setting>[\w.]+): .+? given(?: to [\w.]+)?, (?:but|which|from which) (?P<reason>.+); choose .+"
)


def choices(group: str) -> list[str]:
    """The names in a group of the configuration."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def composed(method: str, views: str | None) -> DictConfig:
    """The command's configuration for small batches of digits, with the method's own views where none are named."""
    given = [f"method={method}", "data.batch_size=16", *([f"views={views}"] if views else [])]
    config = check("train", given).config
    OmegaConf.resolve(config)
    return config


def variant(method: str, *, views: str | None = None, **parts: str) -> DictConfig:
    """The configuration of ``method`` with ``parts`` (divergence, teacher, objective, backbone) in place of its own."""
    config = copy.deepcopy(composed(method, views))
    for group, choice in parts.items():
        if group == "backbone":
            config.backbone.name = choice
        else:
            config[group] = OmegaConf.load(CONF / group / f"{choice}.yaml") or {}
    return config


def build(method: str, **parts: str) -> tuple[Any, str | None]:
    """The module that ``parts`` make, and the views it takes: its own, or masked ones where an objective needs them.

    Raises:
        ValueError: the parts do not go together.
    """
    first: ValueError | None = None
    for views in (None, "ibot"):
        config = variant(method, views=views, **parts)
        module = build_method(config)
        try:
            read_masks(module, instantiate(config.views))
            return module, views
        except ValueError as error:
            first = first or error
    assert first is not None
    raise first


def suited(**pair: str) -> dict[str, str]:
    """``pair`` with a backbone and a teacher that most things go with, where it names none."""
    return {"backbone": "small_vit", "teacher": "ema"} | pair


@cache
def outcome(method: str, group: str, choice: str) -> str:
    """ "yes", or why ``method`` does not go with that choice."""
    try:
        build(method, **suited(**{group: choice}))
    except ValueError as error:
        found = REFUSAL.fullmatch(str(error))
        if found is None:
            raise
        return found["reason"]
    return "yes"


def table(group: str, names: dict[str, str]) -> list[str]:
    """Methods down, the choices of ``group`` across; reasons as notes below, since they repeat."""
    notes: dict[str, int] = {}
    rows = ["| `method=` | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for method in choices("method"):
        cells = []
        for name in names:
            text = outcome(method, group, name)
            cells.append(text if text == "yes" else f"no ({notes.setdefault(text, len(notes) + 1)})")
        rows.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return [*rows, "", *(f"{number}. {text}" for text, number in notes.items())]


def needs() -> list[str]:
    """Objectives and what they need, by their declaration."""
    rows = ["| `objective=` | needs |", "|---|---|"]
    for name in choices("objective"):
        if name != "none":
            node = OmegaConf.load(CONF / "objective" / f"{name}.yaml")[name]
            wanted = sorted(get_class(node["_target_"]).needs)
            rows.append(f"| `{name}` | {', '.join(wanted) or '–'} |")
    return rows


def approximated() -> list[str]:
    """Terms that micro-batches only approximate, as methods (set up for digits) and objectives declare."""
    rows = ["| `method=` or `objective=` | terms that couple images |", "|---|---|"]
    for method in choices("method"):
        terms = couplings(build(method, **suited())[0])
        rows.append(f"| `{method}` | {', '.join(f'`{term}` ({why})' for term, why in terms.items()) or '–'} |")
    for name in choices("objective"):
        if name != "none":
            node = OmegaConf.load(CONF / "objective" / f"{name}.yaml")[name]
            rows.append(f"| `{name}` | {get_class(node['_target_']).couples} |")
    return rows


def page() -> str:
    """The text of compatibility.md."""

    def quoted(group: str, *without: str) -> dict[str, str]:
        return {name: f"`{name}`" for name in choices(group) if name not in without}

    parts = [
        "# Which parts go together",
        "",
        "Made by `python docs/compatibility.py`; do not edit. Every cell was built. What is not a yes is refused",
        "before anything is made, with a line that says what to choose instead.",
        "",
        "## Divergences",
        "",
        "`auto` is the method's own.",
        "",
        *table("divergence", quoted("divergence")),
        "",
        "## Teachers",
        "",
        *table("teacher", quoted("teacher")),
        "",
        "## Objectives",
        "",
        "With what the objective needs at hand: a teacher; a vision transformer, which has patch tokens; views with",
        "masks; a method that projects every view of an image.",
        "",
        *table("objective", quoted("objective", "none")),
        "",
        *needs(),
        "",
        "## Backbones",
        "",
        *table("backbone", BACKBONES),
        "",
        "## Gradient accumulation",
        "",
        "`trainer.accumulate_grad_batches=N` is one batch of N times the size exactly where nothing stands here and no",
        "network has batch norm, and an approximation elsewhere, which `accumulate=exact` mends: see",
        "[large batches](how_to/large_batches.md). Numbers of masked patches or labelled images couple only where they",
        "differ from batch to batch, Sinkhorn in `dino_like` and `dinov2_like` only with `method.centering=sinkhorn`.",
        "",
        *approximated(),
    ]
    return "\n".join(parts).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    text = page()
    if "--check" in arguments:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.name} is {'current' if current else 'out of date: python docs/compatibility.py'}")
        return int(not current)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
