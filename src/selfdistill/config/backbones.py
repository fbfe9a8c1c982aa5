"""What the names of backbones say, without torch: timm's are read from its source."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

OWN = {"small_cnn": False, "small_vit": True}
"""Whether the networks of this package, by name, have patch tokens."""


def has_tokens(name: str) -> bool | None:
    """Whether the backbone of that name has patch tokens; None where only timm can tell."""
    if name in OWN:
        return OWN[name]
    home = next((text for text in _timm() if name.partition(".")[0] in _networks(text)), None)
    return False if home is not None and "VisionTransformer" not in home else None


def near_backbones(name: str) -> list[str]:
    """The known names that are nearest to one that there is not; none where there is one, or no telling."""
    texts = _timm()
    base = name.partition(".")[0]
    # deprecated names stand as texts beside the networks that took their place
    if not texts or name in OWN or any(re.search(rf"\b{re.escape(base)}\b", text) for text in texts):
        return []
    known = {network for text in texts for network in _networks(text)}
    return difflib.get_close_matches(name, sorted(known | set(OWN)), n=3)


@cache
def _timm() -> tuple[str, ...]:
    """The sources of timm's models."""
    spec = importlib.util.find_spec("timm")
    folders = [Path(place) / "models" for place in (spec and spec.submodule_search_locations) or ()]
    return tuple(file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))


@cache
def _networks(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE))
