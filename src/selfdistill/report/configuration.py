"""The resolved configuration, what of it differs from the method's default, and where the run comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from selfdistill.config import flatten
from selfdistill.provenance import versions
from selfdistill.report.tables import cells, table

DIFFERENCE_HEADS = ["key", "this run", "by default"]


def configuration(config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> str:
    """What differs, then all keys, folded."""
    values = _values(config)
    if defaults is None:
        rows = [[escape(key), escape(value)] for key, value in values.items()]
        return f"<div class=loose>{cells([], rows)}</div>"
    differing = differences(config, defaults)
    said = table(DIFFERENCE_HEADS, differing) if differing else "<p>As the method comes.</p>"
    changed = {key for key, *_ in differing}
    rows = [
        [f"<b>{escape(key)}</b>", f"<b>{escape(value)}</b>"] if key in changed else [escape(key), escape(value)]
        for key, value in values.items()
    ]
    every = f"<details><summary>all {len(rows)} keys</summary>{cells([], rows)}</details>"
    return f"<div class=loose>{said}{every}</div>"


def differences(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[list[str]]:
    """Rows under ``DIFFERENCE_HEADS``: each key whose value is not the default's, "–" where the default has none."""
    usual = _values(defaults)
    # paths inside the run's folder differ in every run
    inside = config.get("run_dir") or "\0"
    return [
        [key, value, usual.get(key, "–")]
        for key, value in _values(config).items()
        if usual.get(key) != value and inside not in value
    ]


def origin(provenance: Mapping[str, Any]) -> str:
    """Command, commit, versions and machine of the run where it stored them, else of what made the page."""
    if not provenance:
        rows = [[name, said] for name, said in versions().items()]
        return table([], rows) + "<p class=facts>of the installation that made this page</p>"
    git = provenance.get("git")
    said = "none" if git is None else f"{git['commit']}{', with changes' if git['changed'] else ''}"
    rows = [["command", str(provenance.get("command"))], ["git", said]]
    rows += [
        [name, str(value)] for part in ("versions", "hardware") for name, value in provenance.get(part, {}).items()
    ]
    return f'<div class="loose versions">{table([], rows)}</div>'


def _values(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: _plain(value) for key, value in flatten(config) if key != "run_dir"}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
