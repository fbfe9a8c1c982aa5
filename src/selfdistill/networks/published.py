"""Backbones out of checkpoints that others published, in timm's names.

Every layout says where in the file the backbone lies, what stands before its names, which names are not its own, and
what they are called in timm. A file is known by its keys, not by its name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.networks.backbones import Backbone, ModuleBackbone

State = dict[str, Tensor]

_HEADS = r"(fc|head|heads|classifier|pred|projection_head|prototypes)\."
_DINOV2 = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # chunks of blocks, as FSDP wrapped them
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class Layout:
    """Where a published checkpoint keeps the network that its paper evaluates.

    Attributes:
        name: of the method.
        under: keys of the nested mappings that lead to the state dict.
        prefix: what stands before the backbone's names, a pattern; names without it are of something else.
        marks: keys, of the whole file or of the state dict, that tell this layout from the others: patterns that all
            have to be found.
        renamed: (pattern, replacement) to timm's names.
    """

    name: str
    under: tuple[str, ...] = ()
    prefix: str = ""
    marks: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


# The first that fits is taken: those with the more telling marks stand first.
LAYOUTS = (
    Layout("moco_v2", ("state_dict",), r"module\.encoder_q\.", (r"^module\.encoder_q\.",)),
    Layout("moco_v3", ("state_dict",), r"module\.base_encoder\.", (r"^module\.base_encoder\.",)),
    Layout("msn", ("target_encoder",), r"(module\.)?", (r"^prototypes$", r"patch_embed\.")),
    Layout("ijepa", ("target_encoder",), r"(module\.)?", (r"^predictor$", r"patch_embed\.")),
    Layout("ibot", ("teacher",), r"(module\.)?backbone\.", (r"^student$", r"masked_embed$")),
    Layout("dino", ("teacher",), r"(module\.)?backbone\.", (r"^student$",)),
    Layout("dinov2", ("model",), r"teacher\.backbone\.", (r"^teacher\.backbone\.",), _DINOV2),
    Layout("dinov2", ("teacher",), r"(module\.)?backbone\.", (r"backbone\.mask_token$",), _DINOV2),
    Layout("dinov2", (), "", (r"^mask_token$", r"ls1\.gamma$"), _DINOV2),
    Layout("swav", ("state_dict",), r"module\.", (r"^module\.prototypes\.",)),
    Layout("swav", (), r"module\.", (r"^module\.prototypes\.",)),
    Layout("ibot", ("state_dict",), "", (r"^patch_embed\.",)),
    # names as timm has them: DINO's published backbones, and those that this package writes
    Layout("plain", (), "", (r"^(patch_embed|conv1|stem|stages)\.",)),
)


def load_published(source: str | Path | Mapping[str, Any], backbone: Backbone | nn.Module) -> str:
    """Load a published checkpoint into ``backbone``; no code in the file is run.

    Known are the layouts of DINO (2104.14294), DINOv2 (2304.07193), MoCo v2 (2003.04297) and v3 (2104.02057), BYOL
    (2006.07733), SwAV (2006.09882), iBOT (2111.07832), MSN (2204.07141) and I-JEPA (2301.08243), whole training
    checkpoints as well as backbones alone. The network taken is the one that the paper evaluates: the teacher of
    DINO, DINOv2, iBOT, MSN and I-JEPA, the student of the others. Position embeddings are resampled to the
    backbone's grid. BYOL's Haiku parameters are read from an ``.npz`` whose names are joined with slashes
    (``params/res_net50/~/initial_conv/w``); TensorFlow pads strided convolutions on one side, PyTorch on both, so its
    outputs agree with the original's only roughly.

    Args:
        source: a file (torch, ``.safetensors`` or ``.npz``), or what it holds.
        backbone: a ResNet or vision transformer of timm, alone or as a :class:`Backbone`.

    Returns:
        The layout's name.

    Raises:
        ValueError: a file that cannot be read or is of no known layout, or a backbone of another architecture.
    """
    stored = source if isinstance(source, Mapping) else _read(Path(source))
    name, state = backbone_state(stored)
    network = plain_network(backbone)
    state = _fit_positions(state, network)
    wanted = network.state_dict()
    # a network without batches counted is as good
    state |= {n: v for n, v in wanted.items() if n.endswith("num_batches_tracked") and n not in state}
    problems = [
        n for n in {**wanted, **state} if n not in state or n not in wanted or wanted[n].shape != state[n].shape
    ]
    if problems:
        first = problems[0]
        theirs = tuple(state[first].shape) if first in state else "nothing"
        ours = tuple(wanted[first].shape) if first in wanted else "nothing"
        raise ValueError(
            f"backbone.checkpoint: a {name} checkpoint of another architecture: {first} is {theirs} in it, {ours} in "
            f"the backbone ({len(problems)} of {len(wanted)} entries differ); choose the backbone that it was made for "
            "(small images have another backbone.small_stem and backbone.channels)"
        )
    network.load_state_dict(state)
    return name


def backbone_state(stored: Mapping[str, Any]) -> tuple[str, State]:
    """Layout and backbone of what a checkpoint holds, in timm's names, heads left out.

    Raises:
        ValueError: no known layout.
    """
    if any(re.search(r"res_?net\d+/", str(key)) for key in stored):
        return "byol", _from_haiku(stored)
    for layout in LAYOUTS:
        state: Any = stored
        for key in layout.under:
            state = state.get(key, {}) if isinstance(state, Mapping) else {}
        if not isinstance(state, Mapping) or not state:
            continue
        keys = [*map(str, stored), *map(str, state)]
        if not all(any(re.search(mark, key) for key in keys) for mark in layout.marks):
            continue
        found = _renamed(state, layout)
        if found:
            return layout.name, found
    some = ", ".join(list(map(str, stored))[:3])
    raise ValueError(
        f"backbone.checkpoint: no known layout (its first keys: {some}); known are "
        f"{', '.join(sorted({layout.name for layout in LAYOUTS} | {'byol'}))}"
    )


def plain_network(backbone: nn.Module) -> nn.Module:
    """The network inside a :class:`Backbone`, whose parameter names are timm's or the user's own."""
    if isinstance(backbone, ModuleBackbone):
        return backbone.module
    inner = getattr(backbone, "model", None) if isinstance(backbone, Backbone) else None
    return inner if isinstance(inner, nn.Module) else backbone


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f"backbone.checkpoint: {str(path)!r} given, no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        # DINO and iBOT store their command line
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds, and advises to run the code
        raise ValueError(
            f"backbone.checkpoint: {path.name} cannot be read without running code in it, or is damaged; "
            "save its tensors anew with torch.save or numpy.savez"
        ) from None
    if not isinstance(stored, Mapping):
        raise ValueError(f"backbone.checkpoint: {path.name} holds a {type(stored).__name__}, not named tensors")
    return stored


def _renamed(state: Mapping[str, Any], layout: Layout) -> State:
    found = {}
    for name, value in state.items():
        inside = re.match(layout.prefix, name)
        if inside is None or not isinstance(value, Tensor):
            continue
        name = name[inside.end() :]
        # mask tokens stand outside the network that is evaluated
        if re.match(_HEADS, name) or name in ("mask_token", "masked_embed"):
            continue
        for pattern, replacement in layout.renamed:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def _fit_positions(state: State, network: nn.Module) -> State:
    """Position embeddings as ``network`` has them: its grid, its number of prefix tokens."""
    from timm.layers import resample_abs_pos_embed

    own: Any = getattr(network, "pos_embed", None)
    theirs = state.get("pos_embed")
    if own is None or theirs is None or theirs.shape == own.shape or theirs.shape[-1] != own.shape[-1]:
        return state
    model: Any = network
    rows, columns = model.patch_embed.grid_size
    own_prefix = own.shape[1] - rows * columns
    patches = theirs.shape[1]
    # a square grid with one token in front, or with none
    prefix = 0 if round(patches**0.5) ** 2 == patches else 1
    state = dict(state)
    if prefix > own_prefix and "cls_token" in state:
        # timm adds nothing to the class token of such networks, so its position goes into it
        state["cls_token"] = state["cls_token"] + theirs[:, :prefix]
        theirs, prefix = theirs[:, prefix:], 0
    if prefix == own_prefix:
        theirs = resample_abs_pos_embed(theirs, [rows, columns], num_prefix_tokens=prefix)
    state["pos_embed"] = theirs
    return state


def _from_haiku(stored: Mapping[str, Any]) -> State:
    """Haiku's names and axes to timm's ResNet: ``block_group_1/~/block_0/~/conv_2/w`` is ``layer2.0.conv3.weight``."""
    leaf = {"w": "weight", "scale": "weight", "offset": "bias"}
    moving = {"mean_ema": "running_mean", "var_ema": "running_var"}
    found: State = {}
    for name, value in stored.items():
        parts = [part for part in str(name).split("/") if part != "~"]
        start = next((i + 1 for i, part in enumerate(parts) if re.fullmatch(r"res_?net\d+", part)), None)
        if start is None or len(parts) < start + 2 or parts[start] == "logits":
            continue
        *modules, last = parts[start:]
        if modules[-1] in moving:
            if last != "average":
                continue
            kind = moving[modules.pop()]
        elif last in leaf:
            kind = leaf[last]
        else:
            continue
        tensor = torch.as_tensor(value)
        # HWIO to OIHW; scales are [1, 1, 1, C]
        tensor = tensor.permute(3, 2, 0, 1).contiguous() if last == "w" and tensor.ndim == 4 else tensor.flatten()
        found[f"{_haiku_module(modules)}.{kind}"] = tensor
    return found


def _haiku_module(modules: list[str]) -> str:
    if len(modules) == 1:
        return {"initial_conv": "conv1", "initial_batchnorm": "bn1"}.get(modules[0], modules[0])
    group, block, layer = (m.rpartition("_") for m in modules[:3])
    names = {"conv": f"conv{int(layer[2]) + 1}" if layer[2].isdigit() else "downsample.0"}
    names["batchnorm"] = f"bn{int(layer[2]) + 1}" if layer[2].isdigit() else "downsample.1"
    return f"layer{int(group[2]) + 1}.{block[2]}.{names[layer[2] if layer[0] == 'shortcut' else layer[0]]}"
