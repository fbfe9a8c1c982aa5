"""Networks with synchronised batch norms are what they were; that they see the global batch, test_equal_to_one says.

A process without a group: there torch's SyncBatchNorm is a plain batch norm, on a CPU as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfdistill.assembly import build_method, build_trainer
from selfdistill.batch_norm_sync import BatchNormSync
from selfdistill.networks import build_backbone


def norms(network: nn.Module) -> list[_BatchNorm]:
    return [part for part in network.modules() if isinstance(part, _BatchNorm)]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_activations_inside_of_batch_norms_stay(name: str) -> None:
    torch.manual_seed(0)
    network = build_backbone(name, image_size=32)
    images, before = torch.randn(4, 3, 32, 32), norms(network)
    kinds = {type(part) for part in before}
    expected = network(images).pooled
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for part in before:
        part.reset_running_stats()
    parameters = dict(network.named_parameters())

    sync = BatchNormSync()
    assert sync.apply(network) is network
    assert all(isinstance(part, nn.SyncBatchNorm) for part in norms(network))
    assert {n: id(p) for n, p in network.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    torch.testing.assert_close(network(images).pooled, expected)
    # what a device does to buffers
    for part in norms(network):
        part.running_mean = part.running_mean.clone()  # type: ignore[union-attr]

    assert sync.revert(network) is network
    assert norms(network) == before
    assert {type(part) for part in norms(network)} == kinds
    assert network.state_dict().keys() == state.keys()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, state[key])
    torch.testing.assert_close(network(images).pooled, expected)
    network.eval()
    assert not any(part.training for part in norms(network))


def test_the_mistake_of_lightnings_own_is_seen() -> None:
    torch.manual_seed(0)
    network = build_backbone("test_efficientnet", image_size=32)
    images = torch.randn(4, 3, 32, 32)
    expected = network(images).pooled
    assert not torch.allclose(TorchSyncBatchNorm().apply(network)(images).pooled, expected, rtol=0.1)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_the_run_takes_it(trainer: str, compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.assembly.whole_statistics", lambda _: True)
    built = build_trainer(compose(f"trainer={trainer}", "trainer.devices=2"), [])
    assert isinstance(built.strategy._layer_sync, BatchNormSync)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["byol_like", "swav_like"])
def test_student_teacher_and_predictor_are_converted(method: str, compose: Any) -> None:
    module = build_method(compose(f"method={method}"))
    BatchNormSync().apply(module)
    assert norms(module)
    assert all(isinstance(part, nn.SyncBatchNorm) for part in norms(module))
    assert all(part.training for part in norms(module.student))
    if module.teacher is not None:
        assert [p.training for p in norms(module.teacher)] == [
            module.teacher_policy.mode == "train" for _ in norms(module.teacher)
        ]
