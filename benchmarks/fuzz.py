"""Overrides and files as hurried people write them, drawn from a seed: right ones, misspelt ones, nonsense."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from selfdistill.config import CONF, Checked, UserError, check, flatten
from selfdistill.config.pairs import check_fits
from selfdistill.config.ranges import rule_of

GROUPS = (
    "method",
    "divergence",
    "teacher",
    "schedule",
    "objective",
    "optimizer",
    "callbacks",
    "logger",
    "trainer",
    "experiment",
    "hparams_search",
    "debug",
    "views",
)
QUICK = {"data": ("digits", "shapes"), "backbone": ("auto", "small_cnn", "small_vit", "resnet18", "vit_tiny")}
JUNK = "=[]{}(),:;'\"$\\|&*?!#%@~+-./ \tüß…0a"


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        kind: what was done to it.
        overrides: its settings.
        refused: it has to be (True), or may be (None).
        key: that a refusal has to name.
        text: of the file ``experiment/mine.yaml`` that it takes, if it does.
    """

    kind: str
    overrides: tuple[str, ...]
    refused: bool | None = None
    key: str = ""
    text: str | None = None


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """The same ones for the same seed."""
    draw = random.Random(seed)
    makers = (_groups, _value, _misspelt, _misspelt_group, _type, _range, _junk, _null, _deleted, _file, _broken_file)
    for _ in range(count):
        yield draw.choice(makers)(draw)


def verdict(case: Case, folder: Path) -> str:
    """``passed``, ``refused``, or what is wrong: a crash, more than a line, a mistake that went through."""
    where: tuple[str, ...] = ()
    if case.text is not None:
        (folder / "experiment").mkdir(exist_ok=True)
        (folder / "experiment" / "mine.yaml").write_text(case.text, encoding="utf-8")
        where = (f"file://{folder}",)
    try:
        found = check("train", list(case.overrides), search_path=where)
        check_fits(found.plain)
    except UserError as error:
        line = str(error)
        if "\n" in line or not line.strip() or "Traceback" in line:
            return f"not one line: {line!r}"
        return "refused" if not case.key or case.key in line else f"does not name {case.key}: {line}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    assert isinstance(found, Checked)
    return "went through" if case.refused else "passed"


def _choices(draw: random.Random) -> list[str]:
    groups = draw.sample([*GROUPS, *QUICK], draw.randint(0, 4))
    names = {g: QUICK.get(g) or sorted(f.stem for f in (CONF / g).glob("*.yaml")) for g in groups}
    return [f"{group}={draw.choice(names[group])}" for group in groups]


def _groups(draw: random.Random) -> Case:
    return Case("groups", tuple(_choices(draw)))


@cache
def _leaves() -> list[tuple[str, Any]]:
    plain = check("train", ["objective=contrastive", "divergence=kl", "callbacks=probe", "method=dino_like"]).plain
    return [(key, value) for key, value in flatten(plain) if not key.startswith(("scale", "run_dir"))]


_HERE = ("objective=contrastive", "divergence=kl", "callbacks=probe", "method=dino_like")


def _value(draw: random.Random) -> Case:
    key, value = draw.choice(_leaves())
    if isinstance(value, bool):
        other: Any = str(not value).lower()
    elif isinstance(value, int):
        other = max(0, value + draw.randint(-2, 5))
    elif isinstance(value, float):
        other = round(value * draw.choice((0.5, 0.9, 1.0, 1.1)), 6)
    else:
        other = "null" if value is None else f"'{value}'" if isinstance(value, str) else str(value)
    return Case("value", (*_HERE, f"{key}={other}"))


def _wrong(draw: random.Random, word: str) -> str:
    at = draw.randrange(1, len(word))
    return draw.choice(
        (word[:at] + word[at + 1 :], word[:at] + word[at] * 2 + word[at + 1 :], word + "s", word[:at] + "x" + word[at:])
    )


def _misspelt(draw: random.Random) -> Case:
    keys = [key for key, _ in _leaves()]
    key = draw.choice([k for k in keys if "_target_" not in k and len(k.rpartition(".")[2]) > 2])
    head, _, last = key.rpartition(".")
    wrong = f"{head}.{_wrong(draw, last)}" if head else _wrong(draw, last)
    if wrong in keys or head.startswith(("weights", "optimizer.freeze")):
        return Case("misspelt", (*_HERE, f"{wrong}=1"))
    return Case("misspelt", (*_HERE, f"{draw.choice(('', '+', '++'))}{wrong}=1"), refused=True, key=wrong)


def _misspelt_group(draw: random.Random) -> Case:
    group = draw.choice(GROUPS)
    name = _wrong(draw, draw.choice(sorted(f.stem for f in (CONF / group).glob("*.yaml"))))
    known = (CONF / group / f"{name}.yaml").exists()
    return Case("misspelt group", (f"{group}={name}",), refused=not known or None, key="" if known else group)


def _type(draw: random.Random) -> Case:
    key = draw.choice([k for k, v in _leaves() if isinstance(v, bool | int | float) and rule_of(k)])
    return Case("wrong type", (*_HERE, f"{key}={draw.choice(('many', 'true', '[1]', '{a:1}'))}"), refused=True, key=key)


def _range(draw: random.Random) -> Case:
    key = draw.choice([k for k, _ in _leaves() if (rule := rule_of(k)) and rule.low is not None])
    rule = rule_of(key)
    assert rule is not None
    assert rule.low is not None
    wrong = draw.choice((rule.low - 7, -1e9, "nan", *((rule.high + 1,) if rule.high is not None else ())))
    return Case("out of range", (*_HERE, f"{key}={wrong}"), refused=True, key=key)


def _junk(draw: random.Random) -> Case:
    text = "".join(draw.choice(JUNK) for _ in range(draw.randint(1, 12)))
    key = draw.choice(["", *(k for k, _ in _leaves())])
    return Case("junk", (f"{key}={text}" if draw.random() < 0.7 else text,))


def _null(draw: random.Random) -> Case:
    return Case("null", (*_HERE, f"{draw.choice([*GROUPS, *QUICK, *(k for k, _ in _leaves())])}=null"))


def _deleted(draw: random.Random) -> Case:
    return Case("taken away", (*_HERE, f"~{draw.choice([*GROUPS, *QUICK, *(k for k, _ in _leaves())])}"))


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def _file(draw: random.Random) -> Case:
    made = draw.choice((_value, _misspelt, _type, _range))(draw)
    key, _, text = made.overrides[-1].lstrip("+").partition("=")
    value = yaml.safe_load(text) if text not in ("nan",) else float("nan")
    written = "# @package _global_\n" + yaml.safe_dump(_nested(key, value))
    return Case(f"file: {made.kind}", (*_HERE, "experiment=mine"), made.refused, made.key, written)


def _broken_file(draw: random.Random) -> Case:
    whole = (CONF / "method" / "dino_like.yaml").read_text(encoding="utf-8")
    at = draw.randrange(len(whole))
    text = draw.choice(
        (whole[:at], whole[:at] + draw.choice(JUNK) + whole[at:], whole[:at] + whole[at + 1 :], "[1, 2", "5")
    )
    return Case("broken file", ("experiment=mine",), text=text)
