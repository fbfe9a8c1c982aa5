"""Export: one function for all formats, with a card beside what it writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from selfdistill.export import formats
from selfdistill.export.card import Facts, model_card
from selfdistill.export.loading import loading
from selfdistill.export.plain import Image, PatchMean, Pooled, Projected, recipe_of, representation
from selfdistill.files import whole_file, whole_folder, write_text
from selfdistill.methods import SelfDistillModule
from selfdistill.networks.published import plain_network

Format = Literal["safetensors", "timm", "torchvision", "torch_export", "onnx", "huggingface"]
FORMATS: dict[Format, str] = {
    "safetensors": ".safetensors",
    "timm": ".safetensors",
    "torchvision": ".pth",
    "torch_export": ".pt2",
    "onnx": ".onnx",
    "huggingface": "",
}
"""Suffix of the file of each format; none for a folder."""


def export_backbone(
    module: SelfDistillModule[Any, Any],
    output: str | Path,
    facts: Facts,
    *,
    format: Format = "safetensors",
    head: bool = False,
) -> Path:
    """Write the backbone that ``module`` evaluates, and ``<output>.md``, its card (``README.md`` in a folder).

    Nothing of the exported network needs this package. Every format but safetensors is loaded again and compared with
    the network before it gets its name, so that a file that exists is right.

    Args:
        module: whose evaluated network (student or teacher, as its ``evaluates`` says) is written.
        output: the file, or the folder for ``huggingface``.
        facts: what the card says.
        format: ``safetensors``: the state dict of any network in its own names; ``timm`` and ``torchvision``: the same
            for networks that these build, in their names, so that ``load_state_dict(strict=True)`` works there;
            ``torch_export`` and ``onnx``: programs with a free batch size; ``huggingface``: a folder for the hub.
        head: backbone and head together (names ``backbone.…`` and ``head.…``, programs that give the projection).

    Returns:
        What was written.

    Raises:
        ValueError: a format that cannot hold this network, another suffix, or a folder that exists.
    """
    output = Path(output)
    if format not in get_args(Format):
        raise ValueError(f"format: {format!r} given, allowed is {', '.join(get_args(Format))}")
    if head and format in ("timm", "torchvision", "huggingface"):
        raise ValueError(f"head: true given, format={format} holds a backbone alone; use safetensors or a program")
    if FORMATS[format] and output.suffix != FORMATS[format]:
        raise ValueError(f"output: {output.name!r} given, format={format} writes a file that ends in {FORMATS[format]}")
    tower = copy.deepcopy(module.evaluated_tower).cpu().requires_grad_(False).eval()
    network = plain_network(tower.backbone)
    recipe = recipe_of(network, facts.image[0])
    shown = _shown(module, facts.image, format)
    words = Projected.words if head else shown.words
    method = type(module).__name__
    metadata = {
        "method": method,
        "network": module.evaluates,
        "architecture": recipe.architecture,
        "arguments": json.dumps(recipe.arguments),
        "small_stem": json.dumps(recipe.small_stem),
        "mean": json.dumps(list(facts.mean)),
        "std": json.dumps(list(facts.std)),
    }
    lines: list[str] = []

    def card(file: str) -> str:
        return model_card(
            facts,
            method=method,
            network=module.evaluates,
            recipe=recipe,
            file=file,
            output=words,
            parameters=sum(p.numel() for p in (tower if head else network).parameters()),
            code=loading(format, recipe, file, facts.image, lines, head=head, patches=shown is PatchMean),
        )

    if format == "huggingface":
        normal = {"mean": list(facts.mean), "std": list(facts.std)}
        with whole_folder(output) as folder:
            formats.write_huggingface(network, folder, recipe, metadata, facts.image, normal)
            (folder / "README.md").write_text(card(output.name), encoding="utf-8")
        return output
    with whole_file(output) as file:
        if format == "safetensors":
            formats.write_safetensors(tower if head else network, file, metadata)
        elif format == "timm":
            formats.write_timm(network, file, recipe, metadata, facts.image)
        elif format == "torchvision":
            lines = formats.write_torchvision(network, file, recipe, facts.image)
        else:
            program: nn.Module = Projected(tower) if head else shown(tower.backbone)
            write = formats.write_torch_export if format == "torch_export" else formats.write_onnx
            write(program.eval(), file, facts.image)
    write_text(output.with_name(output.name + ".md"), card(output.name))
    return output


def _shown(module: SelfDistillModule[Any, Any], image: Image, format: Format) -> type[Pooled]:
    """What the exported network is read by."""
    try:
        shown = representation(module, image)
    except ValueError:
        if format != "safetensors":
            raise
        return Pooled
    if shown is PatchMean and format == "torchvision":
        raise ValueError(
            "format: torchvision's networks give no patch tokens, which this method averages; use timm or a program"
        )
    return shown
