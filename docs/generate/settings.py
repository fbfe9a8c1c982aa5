"""The table of a method's settings: value on the digits, the paper's, and the meaning in the docstring."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from generate import docstrings
from selfdistill.config import CONF, check

_OURS = {"_target_", "_convert_", "paper"}
# what the paper's recipe says beside the method's own arguments
_RECIPE = {
    "teacher": "momentum momentum_end shape mode",
    "optimizer": "name lr lr_end weight_decay weight_decay_end scaling warmup clip clip_mode freeze lr_multipliers "
    "constant_lr",
}
_OTHERS = {
    "backbone.name": "the network",
    "backbone.drop_path": "stochastic depth of the student",
    "data.batch_size": "images a step",
    "trainer.max_epochs": "length of the run",
}


@cache
def composed(method: str, data: str | None) -> dict[str, Any]:
    """The configuration of a command, as plain containers; with ``data`` that nothing is adapted to, the paper's."""
    given = [f"method={method}", *([f"data={data}", "data.root=."] if data else [])]
    return check("train", given).plain


def table(method: str, meta: Mapping[str, Any]) -> str:
    """Every argument of the method, then what its recipe says of teacher, optimizer and length."""
    small, paper = composed(method, None), composed(method, "imagenet")
    paper = {**paper, "data": {**paper["data"], "batch_size": paper["method"]["paper"]["batch_size"]}}
    unchecked = meta.get("unchecked", [])
    heading = "the paper's" if meta.get("paper_values", True) else "elsewhere"
    rows = [f"| setting | on digits | {heading} | meaning |", "|---|---|---|---|"]
    for key, meaning in _meanings(method, small):
        here, there = _value(small, key), _value(paper, key)
        if here is there is None or (here in ({}, []) and there in ({}, [])):
            continue
        published = f"{_show(there)} (ours: not checked against the paper)" if key in unchecked else _show(there)
        rows.append(f"| `{key}` | {_show(here)} | {published} | {meaning} |")
    return '<div class="settings" markdown>\n\n' + "\n".join(rows) + "\n\n</div>"


def _meanings(method: str, small: Mapping[str, Any]) -> list[tuple[str, str]]:
    target = small["method"]["_target_"].rsplit(".", 1)[1]
    own = docstrings.arguments(f"methods/{_file(target)}", target)
    rows = [(f"method.{key}", own.get(key, "")) for key in small["method"] if key not in _OURS]
    rows += [(f"weights.{key}", "weight of the term") for key in small["weights"]]
    if small["teacher"]["_target_"].endswith("ema"):
        policy = docstrings.arguments("teacher/policy.py", "TeacherPolicy", "ema")
        policy["mode"] = "whether it sees batch statistics (`train`) or running ones (`eval`)"
        rows += [(f"teacher.{key}", policy[key]) for key in _RECIPE["teacher"].split()]
    recipe = docstrings.arguments("optim/recipe.py", "OptimizerRecipe")
    rows += [(f"optimizer.{key}", recipe[key]) for key in _RECIPE["optimizer"].split()]
    return [*rows, *_OTHERS.items()]


@cache
def _file(target: str) -> str:
    folder = docstrings.SOURCE / "methods"
    return next(p.name for p in sorted(folder.glob("*.py")) if re.search(rf"^class {target}\b", _text(p), re.MULTILINE))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _value(plain: Mapping[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _show(value: Any) -> str:
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, Mapping):
        if str(value.get("_target_", "")).endswith("LinearSchedule"):
            return f"{_show(value['start'])} → {_show(value['end'])} over {value['duration']}"
        return ", ".join(f"{key}: {_show(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def names() -> list[str]:
    """The methods, by their name on the command line."""
    return sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
