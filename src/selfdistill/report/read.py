"""What a run left in its folder."""

from __future__ import annotations

import base64
import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from selfdistill.config import UserError, check, hydra_kept, resolved

Series = list[tuple[float, float]]
"""(optimizer step, value), in the order in which they were logged."""

_ALLOWED = "allowed is the folder of a run"


@dataclass(frozen=True)
class Pictures:
    """What a run stored of images in ``pictures/``.

    Attributes:
        panels: by name, what ``panels.json`` says; empty without one.
        sheets: by panel, the file as a ``data:`` address.
    """

    panels: dict[str, Any] = field(default_factory=dict)
    sheets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The files of a run.

    Attributes:
        name: of its folder.
        config: the resolved configuration.
        defaults: that of the same method without any change; None where it cannot be composed.
        summary: ``summary.json``; empty for a run that has not ended.
        provenance: ``provenance.json``; empty without one.
        series: the finite values of ``metrics.csv`` by name; empty without one.
        alarms: of the collapse monitor.
        stopped: why it did not reach its end, where it was an error or a signal.
        pictures: views, neighbours, map and attention.
    """

    name: str
    config: dict[str, Any]
    defaults: dict[str, Any] | None
    summary: dict[str, Any]
    series: dict[str, Series]
    provenance: dict[str, Any] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    pictures: Pictures = field(default_factory=Pictures)


def read_run(folder: Path, alarms: list[dict[str, Any]] | None = None, stopped: str = "") -> Run:
    """Read what there is; only ``config.yaml`` has to be.

    Args:
        folder: of the run.
        alarms: so far, for a run that goes on; None takes those of the summary.
        stopped: why it did not reach its end.

    Raises:
        UserError: ``folder`` holds no run, or one of its files is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run: {str(folder)!r} given, no config.yaml there; {_ALLOWED}")
    summary: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    try:
        config = resolved(OmegaConf.create(OmegaConf.load(folder / "config.yaml")))  # type: ignore[arg-type]
        if (folder / "summary.json").is_file():
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if (folder / "provenance.json").is_file():
            provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        series = read_series(folder / "metrics.csv")
        pictures = _pictures(folder / "pictures")
    except (YAMLError, ValueError, AssertionError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"run: {str(folder)!r} given, its files cannot be read ({said}); make the run again") from None
    if "run_dir" not in config:
        raise UserError(f"run: {str(folder)!r} given, its config.yaml is of something else; {_ALLOWED}")
    alarms = summary.get("alarms") or [] if alarms is None else alarms
    name, defaults = folder.resolve().name, _defaults(summary.get("method"))
    return Run(name, config, defaults, summary, series, provenance, alarms, stopped, pictures)


def read_series(file: Path) -> dict[str, Series]:
    found: dict[str, Series] = {}
    if not file.is_file():
        return found
    with open(file, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            # a killed run may end in half a row
            step = _number(row.get("step"))
            for name, text in row.items():
                value = _number(text)
                if step is not None and value is not None and name not in ("step", "epoch"):
                    found.setdefault(name, []).append((step, value))
    return found


def _pictures(folder: Path) -> Pictures:
    if not (folder / "panels.json").is_file():
        return Pictures()
    panels = json.loads((folder / "panels.json").read_text(encoding="utf-8"))
    sheets = {name: folder / panel["sheet"] for name, panel in panels.items() if "sheet" in panel}
    kinds = {".png": "image/png", ".jpg": "image/jpeg"}
    return Pictures(
        {name: panel for name, panel in panels.items() if name not in sheets or sheets[name].is_file()},
        {
            name: f"data:{kinds[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
            for name, file in sheets.items()
            if file.is_file()
        },
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _defaults(method: str | None) -> dict[str, Any] | None:
    """The resolved configuration of ``method=<method>``; None where the method is not one of this package."""
    if method is None:
        return None
    try:
        with hydra_kept():
            return check("train", [f"method={method}"]).plain
    except UserError:
        return None
