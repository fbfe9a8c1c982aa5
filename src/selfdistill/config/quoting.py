"""Text that Hydra's grammar of overrides takes as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence


def quoted(key: str, value: object) -> str:
    """An override that Hydra's grammar takes, whatever stands in ``value``."""
    return f"{key}={_text(value)}"


def searched(folders: Sequence[str]) -> str:
    """The override that has Hydra look for configurations in ``folders`` too."""
    return f"hydra.searchpath=[{','.join(map(_text, folders))}]"


def _text(value: object) -> str:
    # a backslash is one only before a quote
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
    return f"'{text}'"
