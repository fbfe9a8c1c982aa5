"""Published checkpoint layouts, made here: each fresh backbone then computes what the source did."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfdistill.networks import ModuleBackbone, SmallCNN, as_backbone, build_backbone, load_published
from selfdistill.networks.published import backbone_state

State = dict[str, Any]
NOISE = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))


def vit(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    given = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**{**given, **settings}).eval()


def resnet(seed: int) -> nn.Module:
    """torchvision's: the networks of MoCo and SwAV are copies of it."""
    torch.manual_seed(seed)
    network = torchvision.models.resnet18().eval()
    with torch.no_grad():
        for name, value in network.named_buffers():
            if name.endswith(("mean", "var")):
                value.add_(0.02 * torch.rand_like(value))  # more would leave no unit alive
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def head(name: str) -> State:
    return {f"{name}.weight": NOISE, f"{name}.bias": NOISE}


def other(state: State) -> State:
    """The network that must not be taken."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


def dino(s: State) -> State:
    return {
        "student": under("module.backbone.", other(s)) | head("module.head.last_layer"),
        "teacher": under("backbone.", s) | head("head.mlp.0") | head("head.last_layer"),
        "optimizer": {"state": {}},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": NOISE},
    }


def ibot(s: State) -> State:
    token = {"backbone.masked_embed": NOISE}
    full = dino(s)
    full["student"] |= under("module.", token)
    full["teacher"] |= token
    return full


def dinov2_training(s: State) -> State:
    chunked = {(f"blocks.0.{n[7:]}" if n.startswith("blocks.") else n): v for n, v in s.items()}
    teacher = under("teacher.backbone.", {**chunked, "mask_token": NOISE}) | head("teacher.dino_head.last_layer")
    return {"model": {**under("student.backbone.", other(chunked)), **teacher}, "iteration": 9}


def moco_v2(s: State) -> State:
    state = under("module.encoder_q.", s) | head("module.encoder_q.fc.0") | head("module.encoder_q.fc.2")
    state |= under("module.encoder_k.", other(s)) | {"module.queue": NOISE, "module.queue_ptr": torch.zeros(1)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {}}


def moco_v3(s: State) -> State:
    state = under("module.base_encoder.", s) | head("module.base_encoder.head.0") | head("module.base_encoder.fc.0")
    state |= under("module.momentum_encoder.", other(s)) | head("module.predictor.0")
    return {"epoch": 300, "arch": "vit_small", "state_dict": state}


def swav(s: State) -> State:
    return under("module.", s) | head("module.projection_head.0") | {"module.prototypes.weight": NOISE}


def msn(s: State) -> State:
    target = under("module.", s) | head("module.fc.fc1") | head("module.pred.0")
    return {"epoch": 800, "encoder": under("module.", other(s)), "target_encoder": target, "prototypes": NOISE}


def ijepa(s: State) -> State:
    encoder = under("module.", other(s))
    return {"encoder": encoder, "predictor": head("module.predictor_embed"), "target_encoder": under("module.", s)}


TOKENLESS = {"class_token": False, "global_pool": "avg", "fc_norm": False}
SOURCES: dict[str, tuple[str, Callable[[State], State], Callable[[int], Any], Callable[[], Any]]] = {
    "dino": ("dino", dino, vit, lambda: vit(9)),
    "dino backbone": ("plain", lambda s: s, vit, lambda: vit(9)),
    "dino resnet": ("dino", lambda s: {**dino(s), "teacher": under("module.backbone.", s)}, resnet,
                    lambda: timm.create_model("resnet18", num_classes=0)),
    "ibot": ("ibot", ibot, vit, lambda: vit(9)),
    "ibot backbone": ("ibot", lambda s: {"state_dict": s}, vit, lambda: vit(9)),
    "dinov2": ("dinov2", lambda s: {**s, "mask_token": NOISE}, lambda n: vit(n, init_values=1.0),
               lambda: vit(9, init_values=1.0)),
    "dinov2 training": ("dinov2", dinov2_training, lambda n: vit(n, init_values=1.0), lambda: vit(9, init_values=1.0)),
    "moco_v2": ("moco_v2", moco_v2, resnet, lambda: timm.create_model("resnet18", num_classes=0)),
    "moco_v3": ("moco_v3", moco_v3, vit, lambda: vit(9)),
    "swav": ("swav", swav, resnet, lambda: timm.create_model("resnet18", num_classes=0)),
    "swav training": ("swav", lambda s: {"epoch": 1, "state_dict": swav(s)}, resnet,
                      lambda: timm.create_model("resnet18", num_classes=0)),
    "msn": ("msn", msn, vit, lambda: vit(9)),
    "ijepa": ("ijepa", ijepa, lambda n: vit(n, **TOKENLESS), lambda: vit(9, **TOKENLESS)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_the_backbone_computes_what_its_source_does(name: str, tmp_path: Path) -> None:
    layout, wrap, make, fresh = SOURCES[name]
    source, backbone = make(1), as_backbone(fresh()).eval()
    torch.save(wrap(source.state_dict()), tmp_path / "published.pth")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert source(images).std() > 0.1
        assert not torch.allclose(backbone(images).pooled, source(images))
        assert load_published(tmp_path / "published.pth", backbone) == layout
        torch.testing.assert_close(backbone(images).pooled, source(images))


def haiku(network: nn.Module) -> dict[str, np.ndarray]:
    """A ResNet under the names that DeepMind's networks.py gives its parameters, axes as JAX has them."""
    out = {}
    for name, value in network.state_dict().items():
        *path, kind = name.split(".")
        if kind == "num_batches_tracked":
            continue
        if len(path) == 1:
            module = {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[path[0]]
        else:
            layer = ".".join(path[2:])
            fixed = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_batchnorm"}
            inner = fixed.get(layer) or (
                f"conv_{int(layer[-1]) - 1}" if "conv" in layer else f"batchnorm_{int(layer[-1]) - 1}"
            )
            module = f"block_group_{int(path[0][5:]) - 1}/~/block_{path[1]}/~/{inner}"
        array = value.numpy()
        if array.ndim == 4:
            out[f"params/res_net50/~/{module}/w"] = array.transpose(2, 3, 1, 0)
            continue
        array = array[None, None, None]
        if kind.startswith("running"):
            moving = f"state/res_net50/~/{module}/~/{kind[8:]}_ema"
            out |= {f"{moving}/average": array, f"{moving}/hidden": array * 0, f"{moving}/counter": np.zeros(())}
        else:
            out[f"params/res_net50/~/{module}/{'scale' if kind == 'weight' else 'offset'}"] = array
    return out | {"params/res_net50/~/logits/w": np.zeros((3, 3)), "params/predictor/linear/w": np.zeros((3, 3))}


def test_byols_haiku_parameters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet26", num_classes=0).eval()
    np.savez(tmp_path / "byol.npz", **haiku(source))  # type: ignore[arg-type]
    backbone = build_backbone("resnet26", checkpoint=str(tmp_path / "byol.npz"))
    ours, theirs = backbone.state_dict(), source.state_dict()
    for name, value in theirs.items():
        assert torch.equal(ours[f"model.{name}"], value), name


def test_dinov2_registers_enter_where_they_did() -> None:
    """DINOv2 adds positions to class token and patches, then puts registers between."""
    source = vit(1, init_values=1.0)
    state = {**source.state_dict(), "register_tokens": torch.randn(1, 3, 12), "mask_token": NOISE}
    target = vit(9, init_values=1.0, reg_tokens=3, no_embed_class=True)
    assert load_published(state, target) == "dinov2"
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = torch.cat([source.cls_token.expand(2, -1, -1), source.patch_embed(images)], 1) + source.pos_embed
        x = torch.cat([x[:, :1], state["register_tokens"].expand(2, -1, -1), x[:, 1:]], 1)
        expected = source.norm(source.blocks(x))[:, 0]
        torch.testing.assert_close(target(images), expected)


def test_positions_are_resampled_to_the_backbones_grid() -> None:
    source, larger = vit(1), vit(9, img_size=32)
    load_published(source.state_dict(), larger)
    own, theirs = larger.pos_embed, source.pos_embed
    assert torch.equal(own[:, :1], theirs[:, :1])
    grid = theirs[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (8, 8), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(own[:, 1:], expected.flatten(2).transpose(1, 2))


def test_what_this_package_writes_is_read_again(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = SmallCNN(1, (4, 4, 8, 8))
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    target = SmallCNN(1, (4, 4, 8, 8))
    load_published(tmp_path / "backbone.safetensors", target)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())
    wrapped = ModuleBackbone(vit(9))
    load_published(vit(1).state_dict(), wrapped)
    assert torch.equal(wrapped.module.state_dict()["pos_embed"], vit(1).pos_embed)


class Runs:
    """Unpickling it would run something."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def test_refusals_are_one_line_and_load_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = vit(9)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    torch.save({"teacher": Runs()}, tmp_path / "code.pth")
    torch.save([NOISE], tmp_path / "list.pth")
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    deeper: Tensor | Any = vit(1, depth=3).state_dict()
    for source, says in (
        (tmp_path / "none.pth", "no such file"),
        (tmp_path / "code.pth", "cannot be read without running code"),
        (tmp_path / "garbage.pth", "cannot be read"),
        (tmp_path / "list.pth", "holds a list"),
        ({"a": NOISE, "b": NOISE}, r"no known layout \(its first keys: a, b\); known are byol, dino"),
        (deeper, r"another architecture: blocks.2.norm1.weight is \(12,\) in it, nothing in the backbone \(12 of"),
        (vit(1, patch_size=2).state_dict(), "another architecture: patch_embed.proj.weight"),
        (resnet(0).state_dict(), "another architecture"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            load_published(source, target)
        assert "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert backbone_state(vit(1).state_dict())[0] == "plain"
