"""What is exported computes what was trained, in the hands of somebody who has only timm, torchvision or torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from selfdistill import BYOL, IJEPA, EMATeacher, SelfDistillModule
from selfdistill.export import Facts, export_backbone
from selfdistill.networks import build_backbone

Module = SelfDistillModule  # type: ignore[type-arg]


def apart(module: Module) -> Module:
    """Student and teacher with weights and statistics of their own, so that a mistaken one is seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and ("running" in name or "backbone" in name):
                value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
    return module.eval()


def small(name: str, channels: int = 1, **settings: Any) -> Any:
    torch.manual_seed(0)
    return build_backbone(name, channels=channels, image_size=8, patch_size=2, **settings)


MODULES: dict[str, tuple[Callable[[], Module], tuple[int, int, int]]] = {
    "small_cnn": (lambda: BYOL(small("small_cnn"), hidden_dim=8, out_dim=4), (1, 8, 8)),
    "resnet": (lambda: BYOL(small("resnet10t", 3), hidden_dim=8, out_dim=4), (3, 32, 32)),
    "resnet_small_stem": (lambda: BYOL(small("resnet18", 3, small_stem=True), hidden_dim=8, out_dim=4), (3, 16, 16)),
    "vit": (lambda: EMATeacher(small("vit_tiny_patch16_224", 3)), (3, 8, 8)),
    "small_vit": (lambda: EMATeacher(small("small_vit")), (1, 8, 8)),
    "patch_mean": (
        lambda: IJEPA(small("small_vit"), image_size=8, predictor_width=16, predictor_depth=1, predictor_heads=2),
        (1, 8, 8),
    ),
}
_made: dict[str, Module] = {}


def made(name: str) -> tuple[Module, Facts, Tensor]:
    make, image = MODULES[name]
    if name not in _made:
        _made[name] = apart(make())
    facts = Facts(image, (0.5,) * image[0], (0.25,) * image[0], data="digits")
    return _made[name], facts, torch.randn(3, *image, generator=torch.Generator().manual_seed(2))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def code(card: Path) -> str:
    found = re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_code_of_every_card_runs_without_this_package(tmp_path: Path) -> None:
    """Each card's own lines, pasted into a Python that cannot import selfdistill, give the trained features."""
    snippets = []
    for name in MODULES:
        module, facts, images = made(name)
        for format, suffix in (("safetensors", ".safetensors"), ("timm", ".safetensors"), ("torchvision", ".pth"),
                               ("torch_export", ".pt2")):  # fmt: skip
            if (name in ("small_cnn",) and format == "timm") or (
                name in ("small_cnn", "resnet", "patch_mean") and format == "torchvision"
            ):
                continue
            if format == "torch_export" and name not in ("small_cnn", "patch_mean"):
                continue
            folder = tmp_path / name / format
            written = export_backbone(module, folder / f"b{suffix}", facts, format=format)  # type: ignore[arg-type]
            torch.save(images, folder / "images")
            with torch.no_grad():
                torch.save(module.embed(images), folder / "wanted")
            lines = re.sub(r"torch\.zeros\([^)]*\)", "torch.load('images')", code(Path(f"{written}.md")))
            snippets.append((str(folder), lines))
    (tmp_path / "snippets.json").write_text(json.dumps(snippets), encoding="utf-8")
    runner = """
import json, os, sys, torch
sys.modules["selfdistill"] = None
for folder, lines in json.load(open(sys.argv[1])):
    os.chdir(folder)
    given = {}
    with torch.no_grad():
        exec(lines, given)
    torch.testing.assert_close(given["features"], torch.load("wanted"), atol=1e-4, rtol=1e-4, msg=folder)
print(len(json.load(open(sys.argv[1]))))
"""
    done = subprocess.run(
        [sys.executable, "-c", runner, str(tmp_path / "snippets.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(snippets) >= 16


def test_timm_loads_it_strictly_by_name(tmp_path: Path) -> None:
    module, facts, images = made("resnet")
    written = export_backbone(module, tmp_path / "r.safetensors", facts, format="timm")
    network = timm.create_model("resnet10t", num_classes=0)
    network.load_state_dict(load_file(written), strict=True)
    with torch.no_grad():
        close(network.eval()(images), module.embed(images))


@pytest.mark.parametrize("name", ["small_cnn", "patch_mean"])
def test_onnx_runs_in_onnxruntime_at_any_batch_size(name: str, tmp_path: Path) -> None:
    module, facts, images = made(name)
    written = export_backbone(module, tmp_path / "b.onnx", facts, format="onnx")
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    for batch in (images[:1], images, torch.cat([images] * 3)):
        (given,) = session.run(["features"], {"images": batch.numpy()})
        with torch.no_grad():
            close(torch.from_numpy(given), module.embed(batch))


def test_the_hub_folder_is_one_that_timm_reads(tmp_path: Path) -> None:
    for name in ("resnet", "vit"):
        module, facts, images = made(name)
        folder = export_backbone(module, tmp_path / name, facts, format="huggingface")
        assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
        network = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert network.pretrained_cfg["mean"] == [0.5] * 3
        with torch.no_grad():
            close(network.eval()(images), module.embed(images))
    with pytest.raises(ValueError, match="vit exists already"):
        export_backbone(made("vit")[0], folder, made("vit")[1], format="huggingface")


@pytest.mark.parametrize("format", ["safetensors", "torch_export"])
def test_the_head_comes_too_on_request(format: str, tmp_path: Path) -> None:
    module, facts, images = made("small_cnn")
    suffix = {"safetensors": ".safetensors", "torch_export": ".pt2"}[format]
    written = export_backbone(module, tmp_path / f"t{suffix}", facts, format=format, head=True)  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = module.student(images)[1]
        if format == "torch_export":
            close(torch.export.load(written).module()(images), wanted)
        else:
            state = load_file(written)
            assert {name.split(".")[0] for name in state} == {"backbone", "head"}
            tower = _made["small_cnn"].student
            assert all(torch.equal(state[name], value) for name, value in tower.state_dict().items())


def test_the_card_and_the_header_say_where_it_comes_from(tmp_path: Path) -> None:
    module, _, _ = made("small_cnn")
    config = {
        "method": {"_target_": "selfdistill.methods.BYOL"},
        "data": {"root": "/home/someone/images", "batch_size": 8},
        "trainer": {"default_root_dir": "/home/someone/run", "max_epochs": 3},
        "logger": {"csv": {"save_dir": "/home/someone"}},
        "run_dir": "/home/someone/run",
    }
    facts = Facts(
        (1, 8, 8), (0.3,), (0.4,), "digits", config, {"trained": {"knn": 0.9871}}, "last.ckpt", "abc123", 7
    )  # fmt: skip
    written = export_backbone(module, tmp_path / "backbone.safetensors", facts)
    card = (tmp_path / "backbone.safetensors.md").read_text(encoding="utf-8")
    for told in ("BYOL", "student", "digits", "0.987", "abc123", "- optimizer steps: 7", '"max_epochs": 3', "[0.3]"):
        assert told in card
    assert "/home" not in card
    with safe_open(written, "pt") as file:
        assert file.metadata()["method"] == "BYOL"
        assert json.loads(file.metadata()["mean"]) == [0.3]


def test_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cnn, facts, _ = made("small_cnn")
    mean, mean_facts, _ = made("patch_mean")
    resnet, resnet_facts, _ = made("resnet")
    for module, about, settings, says in (
        (cnn, facts, {"format": "gguf"}, "format: 'gguf' given"),
        (cnn, facts, {"format": "timm"}, "SmallCNN is no timm network"),
        (cnn, facts, {"format": "torchvision"}, "torchvision has no network equal to SmallCNN"),
        (resnet, resnet_facts, {"format": "torchvision"}, "torchvision has no network equal to resnet10t"),
        (mean, mean_facts, {"format": "torchvision"}, "no patch tokens"),
        (mean, mean_facts, {"format": "huggingface"}, "cannot build this network by its name"),
        (cnn, facts, {"format": "timm", "head": True}, "head: true given"),
    ):
        suffix = {"timm": ".safetensors", "torchvision": ".pth"}.get(settings["format"], "")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match=says) as caught:
            export_backbone(module, tmp_path / f"out{suffix}", about, **settings)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="ends in .onnx"):
        export_backbone(cnn, tmp_path / "out.pt", facts, format="onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"needs the package onnxscript; pip install 'selfdistill\[onnx\]'"):
        export_backbone(cnn, tmp_path / "out.onnx", facts, format="onnx")
    assert not list(tmp_path.iterdir())


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfdistill.export import formats

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 512)

    module, facts, _ = made("resnet")
    (tmp_path / "r.safetensors").write_bytes(b"older")
    monkeypatch.setattr(formats, "_loaded", lambda model, state: Other())
    with pytest.raises(ValueError, match="does not compute what the trained one does"):
        export_backbone(module, tmp_path / "r.safetensors", facts, format="timm")
    assert (tmp_path / "r.safetensors").read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


def test_exporting_changes_nothing(tmp_path: Path) -> None:
    module, facts, _ = made("vit")
    module.train()
    modes = [part.training for part in module.modules()]
    gradients = [p.requires_grad for p in module.parameters()]
    state = torch.get_rng_state()
    export_backbone(module, tmp_path / "v.safetensors", facts, format="timm")
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == gradients
    module.eval()
