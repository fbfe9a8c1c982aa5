"""A user's mistake, as one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from hydra.errors import CompactHydraException


class UserError(CompactHydraException):
    """A mistake in what the user asked for: one line naming setting, given value, what is allowed."""


def nearest(word: str, known: Sequence[str]) -> str:
    """``; did you mean …?``, or nothing where nothing is near: the same last name elsewhere, then a like spelling."""
    notes = ("scale", "method.paper")  # what other keys take their defaults from
    if not word.startswith(notes):
        known = [k for k in known if not k.startswith(notes)]
    last = word.rpartition(".")[2]
    same = sorted(
        (k for k in known if k.rpartition(".")[2] == last and k != word), key=lambda k: (k.count("."), len(k))
    )
    near = same[:3] or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not near:
        lasts = {k.rpartition(".")[2]: k for k in reversed(known)}
        near = [lasts[name] for name in difflib.get_close_matches(last, list(lasts), n=1, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def shown(value: object) -> str:
    """A value as it would be written in YAML or on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
