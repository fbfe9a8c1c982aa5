import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from selfdistill.evaluation import evaluating, extract_features
from selfdistill.evaluation.features import unit_rows


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_features_and_labels_come_in_order_as_float32_on_the_cpu() -> None:
    images = torch.arange(10.0).view(5, 2)
    labels = torch.tensor([3, 1, 4, 1, 5], dtype=torch.int32)
    loader = [(images[:3], labels[:3]), [images[3:], labels[3:]]]
    features, found = extract_features(lambda x: (2 * x).half(), loader, "cpu")
    assert features.dtype == torch.float32
    assert torch.equal(features, 2 * images)
    assert found.tolist() == labels.tolist()
    assert found.dtype == torch.int64


def test_extraction_keeps_no_graph() -> None:
    module = nn.Linear(2, 3)
    features, _ = extract_features(module, [(torch.ones(4, 2), torch.zeros(4))], "cpu")
    assert not features.requires_grad


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "no batch"),
        ([torch.ones(2, 3)], TypeError, "not \\(images, labels\\)"),
        ([(torch.ones(2, 3), None)], TypeError, "labelled"),
        ([(torch.ones(2, 3, 4), torch.zeros(2))], ValueError, "pool"),
    ],
)
def test_extraction_refuses_in_one_line(loader: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        extract_features(nn.Identity(), loader, "cpu")
    assert "\n" not in str(caught.value)


def test_evaluating_restores_each_submodules_own_mode() -> None:
    module = nn.ModuleDict({"student": network(), "teacher": network(), "frozen": network()})
    module["teacher"].eval()
    module["frozen"][1].eval()
    before = [m.training for m in module.modules()]
    with evaluating(module) as inside:
        assert inside is module
        assert not any(m.training for m in module.modules())
    assert [m.training for m in module.modules()] == before


def test_evaluating_restores_modes_of_shared_submodules() -> None:
    shared = nn.Dropout()
    module = nn.ModuleList([shared, nn.Sequential(shared)])
    shared.eval()
    with evaluating(module):
        pass
    assert [m.training for m in (module, shared, module[1])] == [True, False, True]


def test_evaluating_restores_modes_of_a_module_that_overrides_train() -> None:
    class Headstrong(nn.Sequential):
        def train(self, mode: bool = True) -> "Headstrong":
            super().train(mode)
            self[1].eval()
            return self

    module = Headstrong(*network())
    module[1].train()
    with evaluating(module):
        assert not module[1].training
    assert module[1].training
    assert module.training


def test_evaluating_leaves_the_random_state_and_batch_statistics() -> None:
    module = network()
    statistics = module[1].running_mean.clone()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = draws()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with evaluating(module):
        draws()
        module(torch.randn(8, 4))
    assert draws() == expected
    assert torch.equal(module[1].running_mean, statistics)


def test_evaluating_restores_after_an_error() -> None:
    module = network()
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    expected = draws()
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    with contextlib.suppress(ZeroDivisionError), evaluating(module):
        draws()
        1 / 0  # noqa: B018
    assert module.training
    assert draws() == expected


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e30])
def test_unit_rows_at_any_scale(scale: float) -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    expected = x.double() / x.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit_rows(x * scale).double(), expected, atol=1e-6, rtol=0)


def test_unit_rows_keeps_zero_rows_and_widens_halves() -> None:
    unit = unit_rows(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float16))
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
