"""The costs of a configuration: for every method, in the run, and instead of one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from selfdistill.assembly import build_method
from selfdistill.config import CONF, UserError
from selfdistill.estimate import Planned, answer, predicted
from selfdistill.runner import fit

Compose = Callable[..., DictConfig]
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_costs(method: str, compose: Compose) -> None:
    config = compose(f"method={method}", "data.batch_size=8")
    state = torch.get_rng_state()
    planned = Planned(config)
    cost = planned.cost()
    assert torch.equal(state, torch.get_rng_state())
    module = build_method(config)
    parts = [cost.student.parameters, cost.beside.parameters, cost.teacher.parameters]
    assert sum(parts) == sum(p.numel() for p in module.parameters())
    assert cost.networks == sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
    assert cost.teacher.parameters == (0 if module.teacher is None else parts[0])
    # AdamW: two numbers for each that is trained
    assert cost.optimizer == pytest.approx(2 * cost.gradients, rel=0.01)
    assert cost.activations > 0
    assert 1.5 * cost.student_flops < cost.backward_flops < 2.2 * (cost.student_flops + cost.loss_flops)


def test_the_answer_for_machines_that_are_not_here(compose: Compose) -> None:
    config = compose(
        "method=dinov2_like", "backbone=vit_small", "data=imagenet", "data.batch_size=4", "trainer.devices=8",
        "trainer.num_nodes=3", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed",
    )  # fmt: skip
    said = answer(config)
    assert "with activation checkpointing" in said
    assert "2×224 px + 8×96 px" in said
    (row,) = (line for line in said.splitlines() if line.startswith("24 "))
    assert row.split()[1] == str(24 * 4 * 2)
    assert len(said.splitlines()) < 30
    assert max(map(len, said.splitlines())) <= 160


def test_the_default_network_can_recompute(compose: Compose) -> None:
    config = compose("data.batch_size=8")
    assert "with activation checkpointing" in answer(config)
    plain = Planned(config).cost()
    config.trainer.activation_checkpointing = True
    recomputed = Planned(config).cost()
    assert recomputed.activations < 0.6 * plain.activations
    assert recomputed.backward_flops > plain.backward_flops
    assert "without activation checkpointing" in answer(config)


@pytest.mark.parametrize("method", ["byol_like", "data2vec_like", "dinov2_like"])
def test_micro_batches_that_run_twice(method: str, compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    batch, steps = ("data.batch_size=8",), ("trainer.accumulate_grad_batches=4",)
    one, whole = (Planned(compose(f"method={method}", f"data.batch_size={size}")).cost() for size in (8, 32))
    exact = predicted(compose(f"method={method}", "accumulate=exact", *batch, *steps))
    assert exact is not None
    assert (exact.batch, exact.micro_batch) == (32, 8)
    assert one.activations < exact.activations < 0.7 * whole.activations
    assert exact.backward_flops > whole.backward_flops
    said = capsys.readouterr().out
    assert "a step of 32 images" in said
    assert "networks see 8 images at a time, and again for the gradient (accumulate=exact)" in said
    assert predicted(compose(f"method={method}", *batch, *steps)) == one  # plain: a micro-batch is a batch


def test_the_answer_under_exact_accumulation(compose: Compose) -> None:
    said = answer(compose("accumulate=exact", "data.batch_size=8", "trainer.accumulate_grad_batches=4"))
    assert "networks see 8 images at a time" in said
    (row,) = (line for line in said.splitlines() if line.startswith("8 "))
    assert row.split()[1] == str(8 * 8 * 4)


def test_cost_only_trains_nothing_and_leaves_nothing(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose("cost_only=true", "data=imagenet", "backbone=resnet18")
    folder = tmp_path / "outputs" / "run"
    folder.mkdir(parents=True)
    config.run_dir = str(folder)
    assert fit(config) is None
    assert not folder.exists()
    assert "2·M_model + M_optimizer" in capsys.readouterr().out


def test_a_network_that_needs_values_is_said_in_one_line(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_values.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    num_features = 64\n"
        "    def forward(self, images):\n"
        "        return images.flatten(1) * (2 if images.sum().item() > 0 else 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = compose("cost_only=true")
    config.backbone = {"_target_": "needs_values.Net"}
    with pytest.raises(UserError, match="cost_only: true given, but the step does not run without values") as error:
        fit(config)
    assert "\n" not in str(error.value)


def test_a_run_says_and_keeps_both(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose("trainer.max_epochs=1", "trainer.limit_train_batches=4")
    fit(config)
    out = capsys.readouterr().out
    assert out.index("a step of 128 images ") < out.index("epoch   1/1") < out.index("a step of 128 images:")
    cost = json.loads((Path(config.run_dir) / "summary.json").read_text())["cost"]
    assert cost["measured"]["step_seconds"] > 0
    assert cost["measured"]["peak_of"] == "process"
    held = cost["predicted"]["bytes"]["model_total"] + cost["predicted"]["bytes"]["gradients"]
    assert held <= cost["measured"]["peak_bytes"] < held + 2**30
    assert set(cost["predicted"]) == {"batch", "parameters", "bytes", "state_of", "flops"}
    (peak,) = re.findall(r"= peak of a step +([\d.]+ MiB)", out)
    assert re.search(rf"peak .* measured.*, {peak} predicted", out)
    sizes = cost["predicted"]["bytes"]
    parts = ("model_total", "gradients", "views", "activations", "passing")
    assert sum(sizes[part] for part in parts) == sizes["peak"]
    assert "buffers of predictor" in out
