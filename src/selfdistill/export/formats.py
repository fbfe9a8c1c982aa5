"""Writers of each format; what is written is loaded again and compared before it gets its name."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from selfdistill.evaluation.features import evaluating
from selfdistill.export.plain import Image, Recipe, build
from selfdistill.export.torchvision_keys import to_torchvision

# Between a network and its export, relative to the largest output: rounding in another order of operations.
TOLERANCE = 1e-4


def contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU, each tensor with memory of its own, as safetensors wants it."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def write_safetensors(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """The state dict in the network's own names; ``metadata`` in the file's header."""
    from safetensors.torch import load_file, save

    state = contiguous(network.state_dict())
    # save_file would make a file that only its owner can read
    path.write_bytes(save(state, dict(metadata)))
    if not _same_entries(load_file(path), state):
        raise ValueError(f"output: {path.name} does not read back as it was written; is the disk full?")


def write_timm(network: nn.Module, path: Path, recipe: Recipe, metadata: Mapping[str, str], image: Image) -> None:
    """As :func:`write_safetensors`, for a network that timm builds.

    Raises:
        ValueError: timm does not build it.
    """
    _require_timm(recipe)
    write_safetensors(network, path, metadata)
    _compare(network, _loaded(build(recipe), network.state_dict()), image)


def write_torchvision(network: nn.Module, path: Path, recipe: Recipe, image: Image) -> list[str]:
    """A ``torch.save`` of the state dict in torchvision's names.

    Returns:
        The lines of code that build torchvision's model.

    Raises:
        ValueError: torchvision has no such network.
    """
    twin = to_torchvision(network, recipe)
    torch.save(contiguous(twin.state), path)
    # torchvision's vision transformers take no other size than their own
    size = tuple(recipe.arguments.get("img_size", image[1:]))
    _compare(network, _loaded(twin.model, twin.state), (image[0], int(size[0]), int(size[1])))
    return twin.code


def write_huggingface(
    network: nn.Module, folder: Path, recipe: Recipe, metadata: Mapping[str, str], image: Image, normal: dict[str, Any]
) -> None:
    """A folder as the Hugging Face hub and ``timm.create_model("local-dir:<folder>", pretrained=True)`` read it.

    Raises:
        ValueError: timm does not build the network by arguments alone.
    """
    _require_timm(recipe)
    if recipe.small_stem or recipe.architecture == "VisionTransformer":
        raise ValueError(
            "format: timm's create_model cannot build this network by its name alone (a small stem, or small_vit), "
            "which huggingface needs; use format=timm, torch_export or onnx"
        )
    write_safetensors(network, folder / "model.safetensors", metadata)
    arguments = {k: v for k, v in recipe.arguments.items() if k not in ("num_classes", "in_chans")}
    config = {
        "architecture": recipe.architecture,
        "num_classes": 0,
        "num_features": int(cast(Any, network).num_features),
        "model_args": {**arguments, "in_chans": image[0]},
        "pretrained_cfg": {
            "input_size": list(image),
            "num_classes": 0,
            "first_conv": getattr(network, "pretrained_cfg", {}).get("first_conv"),
            "classifier": getattr(network, "pretrained_cfg", {}).get("classifier"),
            **normal,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _compare(network, _loaded(build(recipe), network.state_dict()), image)


def write_torch_export(network: nn.Module, path: Path, image: Image) -> None:
    """``torch.export`` with a free batch size: ``torch.export.load(path).module()(images)``."""
    with evaluating(network), torch.no_grad(), _quiet():
        sample = _sample(network, image, 2)
        batch = {0: torch.export.Dim("batch", min=1)}
        program = torch.export.export(network, (sample,), dynamic_shapes=({**batch},))
        torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    _compare(network, loaded, image)


def write_onnx(network: nn.Module, path: Path, image: Image) -> None:
    """ONNX with a free batch size, input ``images``, output ``features``; run in onnxruntime where it is installed.

    Raises:
        ValueError: the packages onnx and onnxscript are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"format: onnx needs the package {error.name}; pip install 'selfdistill[onnx]'") from None
    with evaluating(network), torch.no_grad(), _quiet():
        torch.onnx.export(
            network,
            (_sample(network, image, 2),),
            str(path),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            verbose=False,
        )
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _compare(network, lambda x: torch.from_numpy(session.run(None, {"images": x.cpu().numpy()})[0]), image)


def _require_timm(recipe: Recipe) -> None:
    if recipe.library != "timm":
        raise ValueError(
            f"format: {recipe.architecture} is no timm network; use format=safetensors, torch_export or onnx"
        )


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    model.load_state_dict({name: value.cpu() for name, value in state.items()}, strict=True)
    return model.eval()


def _same_entries(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def _sample(network: nn.Module, image: Image, batch: int) -> Tensor:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return torch.randn(batch, *image, generator=torch.Generator().manual_seed(0)).to(device)


def _compare(network: nn.Module, other: Callable[[Tensor], Tensor], image: Image) -> None:
    """Refuse an export that computes something else, at batch sizes other than that of the example."""
    with evaluating(network), torch.no_grad():
        for batch in (1, 3):
            sample = _sample(network, image, batch)
            wanted = network(sample).float().cpu()
            given = other(sample.cpu()).float()
            if wanted.shape != given.shape or (wanted - given).abs().max() > TOLERANCE * wanted.abs().max().clamp_min(
                1
            ):
                raise ValueError("format: the exported network does not compute what the trained one does")


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what the exporters say about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
