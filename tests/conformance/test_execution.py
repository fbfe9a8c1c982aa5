"""How a step is computed changes nothing of what it computes, over conf/method/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from stepping import Module, Steps, batch_of, trained
from torch import nn

from selfdistill.assembly import build_method, set_execution
from selfdistill.config import CONF, UserError, check
from selfdistill.networks import ModuleBackbone, build_backbone
from selfdistill.views.micro_batches import micro_batches

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
QUICK = ("byol_like", "dinov2_like")


def run(
    compose: Any, tmp_path: Path, method: str, *settings: str, micro_batch_size: int | None = None
) -> tuple[Module, Steps]:
    config = compose(f"method={method}", "debug=fast", "data.batch_size=16", *settings)
    batches = [part.views for part in micro_batches(batch_of(config), 8)]
    L.seed_everything(0, verbose=False)
    module = build_method(config)
    set_execution(config, module)
    module.micro_batch_size = micro_batch_size
    torch.manual_seed(1)
    return module, trained(module, batches, tmp_path)


def assert_same(found: Steps, wanted: Steps, *, rtol: float) -> None:
    """In the first step, whose gradient an optimizer like Adam may blow up from nothing; all buffers there."""
    assert found.losses[0] == pytest.approx(wanted.losses[0], rel=max(rtol, 1e-12))
    # a bias in front of a batch norm has a gradient of rounding errors alone
    tolerance = rtol * max(float(gradient.abs().max()) for gradient in wanted.gradients[0].values())
    for name, gradient in wanted.gradients[0].items():
        torch.testing.assert_close(found.gradients[0][name], gradient, rtol=rtol, atol=tolerance)
    assert found.states[0].keys() == wanted.states[0].keys()
    for name in found.states[0].keys() - wanted.gradients[0].keys():
        if not name.startswith("teacher."):
            torch.testing.assert_close(found.states[0][name], wanted.states[0][name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_checkpointing_and_memory_format_change_nothing(method: str, compose: Any, tmp_path: Path) -> None:
    _, wanted = run(compose, tmp_path, method)
    _, recomputed = run(compose, tmp_path, method, "trainer.activation_checkpointing=true")
    assert_same(recomputed, wanted, rtol=0)
    assert recomputed.losses == wanted.losses
    module, strided = run(compose, tmp_path, method, "channels_last=true")
    convolutions = [p for p in module.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    assert_same(strided, wanted, rtol=1e-5)


@pytest.mark.parametrize("method", ["swav_like", "dinov2_like"])
def test_they_go_together_and_with_exact_accumulation(method: str, compose: Any, tmp_path: Path) -> None:
    _, wanted = run(compose, tmp_path, method, micro_batch_size=3)
    both = ("trainer.activation_checkpointing=true", "channels_last=true")
    _, found = run(compose, tmp_path, method, *both, micro_batch_size=3)
    assert_same(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["small_cnn", "small_vit", "test_resnet", "test_convnext", "test_vit"])
def test_a_backbone_recomputes_its_activations(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64, patch_size=16)
    images = torch.randn(3, 3, 64, 64)
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    seen: list[str] = []
    for part in backbone.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(lambda *_: seen.append("forward"))
    backbone(images).pooled.square().sum().backward()
    plain, once = {n: p.grad for n, p in backbone.named_parameters()}, len(seen)
    backbone.zero_grad()
    backbone.load_state_dict(before, strict=False)
    backbone.checkpoint_activations()
    backbone(images).pooled.square().sum().backward()
    assert len(seen) > 2 * once + 1
    for parameter_name, parameter in backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[parameter_name], rtol=0, atol=0)
    with torch.no_grad():
        seen.clear()
        backbone(images)
        assert len(seen) == once
    seen.clear()
    backbone.checkpoint_activations(False)
    backbone(images).pooled.square().sum().backward()
    assert len(seen) == once


def test_a_network_of_ones_own_cannot_recompute() -> None:
    own = ModuleBackbone(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), dim=3)
    with pytest.raises(ValueError, match=r"^trainer\.activation_checkpointing: true given, but ModuleBackbone cannot"):
        own.checkpoint_activations()
    own.checkpoint_activations(False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("accumulate=exactly", "accumulate: 'exactly' given, allowed is plain or exact"),
        ("compile=1", "compile: 1 given, allowed is true or false"),
        ("channels_last=yes_please", "channels_last: 'yes_please' given, allowed is true or false"),
        (
            "trainer.activation_checkpointing=null",
            "trainer.activation_checkpointing: null given, allowed is true",
        ),
    ],
)
def test_settings_are_checked(given: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        check("train", [given])
    assert str(caught.value).startswith(says)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compilation_changes_nothing(method: str, compose: Any, tmp_path: Path) -> None:
    torch.compiler.reset()
    plain, wanted = run(compose, tmp_path, method)
    module, compiled = run(compose, tmp_path, method, "compile=true")
    assert_same(compiled, wanted, rtol=1e-5)
    assert module.state_dict().keys() == plain.state_dict().keys()
    counted: Any = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] > 0
