"""The model card: what the file is, how to load it, what it was trained on and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfdistill.data import Source
from selfdistill.export.plain import Image, Recipe

# The groups of a configuration that say how a network was trained; the others say where files lie.
_TOLD = (
    "method", "backbone", "data", "views", "divergence", "teacher", "schedule", "optimizer", "objective", "weights",
    "student", "trainer", "seed",
)  # fmt: skip
_PLACES = ("root", "default_root_dir", "dirpath", "checkpoint", "save_dir")


@dataclass(frozen=True)
class Facts:
    """What a card says of a network besides its code.

    Attributes:
        image: channels, height and width at which it is evaluated.
        mean: of the training images, values in [0, 1], a channel.
        std: likewise.
        data: name of the data set that it was trained on.
        config: of the run, resolved; places on the machine are left out.
        figures: by representation and name, as in ``summary.json``.
        checkpoint: name of the file that it was taken from.
        sha256: of that file.
        step: optimizer steps taken.
    """

    image: Image
    mean: Sequence[float]
    std: Sequence[float]
    data: str = "unknown"
    config: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    checkpoint: str | None = None
    sha256: str | None = None
    step: int | None = None


def run_facts(
    source: Source,
    config: Mapping[str, Any],
    *,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    step: int | None = None,
    checkpoint: str | None = None,
    sha256: str | None = None,
) -> Facts:
    """What a card says of a run on ``source``."""
    image = (source.channels, source.size, source.size)
    name = source_name(source)
    return Facts(image, source.mean, source.std, name, config, figures or {}, checkpoint, sha256, step)


def source_name(source: Source) -> str:
    """Name of a data set, for people."""
    return str(getattr(source, "name", type(source).__name__.lower()))


def model_card(
    facts: Facts, *, method: str, network: str, recipe: Recipe, file: str, output: str, parameters: int, code: str
) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        facts: of the run.
        method: class name.
        network: student or teacher.
        recipe: how the network is built.
        file: name of the exported file.
        output: what it computes, in words.
        parameters: number of them.
        code: that loads it, without this package where that is possible.
    """
    sections = [
        "---\n"
        + f"library_name: {'timm' if recipe.library == 'timm' else 'pytorch'}\n"
        + "tags:\n- image-feature-extraction\n- self-supervised-learning\n- self-distillation\n"
        + f"datasets:\n- {facts.data}\n---",
        f"# {recipe.architecture}, {method} on {facts.data}\n\n"
        f"The {network} network of a `selfdistill` run: {parameters / 1e6:.2f} M parameters, in `{file}`.\n\n"
        f"What was evaluated is {output}.",
        f"## Loading\n\n```python\n{code}\n```",
        f"## Images\n\n{facts.image[0]} channel{'s' * (facts.image[0] != 1)}, evaluated at {facts.image[1]} × "
        f"{facts.image[2]} pixels; values in [0, 1], then minus mean, divided by standard deviation:\n\n"
        f"- mean {_numbers(facts.mean)}\n- standard deviation {_numbers(facts.std)}",
    ]
    if facts.figures:
        sections.append(f"## Figures\n\nAccuracies on the test split.\n\n{_table(facts.figures)}")
    source = {"checkpoint": facts.checkpoint, "sha256 of it": facts.sha256, "optimizer steps": facts.step}
    versions = [f"- {name}: {value}" for name, value in {**source, **_versions()}.items() if value is not None]
    sections.append("## Provenance\n\n" + "\n".join(versions))
    if facts.config:
        told = json.dumps(portable(facts.config), indent=2, ensure_ascii=False)
        sections.append(f"## Configuration\n\n```json\n{told}\n```")
    return "\n\n".join(sections) + "\n"


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of ``config`` that describe the training, without any place on the machine."""
    return {name: _without_places(config[name]) for name in _TOLD if config.get(name) not in (None, {}, [])}


def _without_places(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_places(value) for key, value in node.items() if key not in _PLACES}
    if isinstance(node, list | tuple):
        return [_without_places(value) for value in node]
    return node


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    lines = ["| representation | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, values in figures.items():
        cells = (f"{values[name]:.3f}" if name in values else "" for name in names)
        lines.append(f"| {row.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    import lightning
    import timm
    import torch

    from selfdistill import __version__

    return {
        "selfdistill": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "timm": timm.__version__,
    }
