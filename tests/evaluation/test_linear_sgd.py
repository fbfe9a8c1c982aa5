"""The SGD probe against torch's optimizer, and its choice of a learning rate."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.evaluation import linear_sgd
from selfdistill.evaluation.linear_sgd import linear_probe_sgd


def blobs(seed: int, count: int = 60, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    centres = torch.randn(classes, 5, generator=torch.Generator().manual_seed(9)) * 3
    return centres[y] + torch.randn(count, 5, generator=generator), y


def test_training_is_torchs_sgd() -> None:
    x, y = blobs(0)
    x = x.double()
    got = linear_sgd._train(x, y, 3, [0.1, 0.5], 4, 16, 0.9, 0.01, seed=3)
    for row, lr in enumerate((0.1, 0.5)):
        layer = nn.Linear(5, 3).double()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(
            [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias]}], lr=lr, momentum=0.9
        )
        order, steps, step = torch.Generator().manual_seed(3), 4 * math.ceil(60 / 16), 0
        for _ in range(4):
            for rows in torch.randperm(60, generator=order).split(16):
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                optimizer.zero_grad()
                F.cross_entropy(layer(x[rows]), y[rows]).backward()
                optimizer.step()
                step += 1
        torch.testing.assert_close(got[row], torch.cat([layer.weight, layer.bias[:, None]], 1).detach())


def test_separable_features_are_separated_and_the_choice_spurns_a_bad_rate() -> None:
    train, test = blobs(0), blobs(1)
    state = torch.get_rng_state()
    good = linear_probe_sgd(*train, *test, epochs=30)
    assert good >= 0.95
    assert torch.equal(torch.get_rng_state(), state)
    assert linear_probe_sgd(*train, *test, learning_rates=(1e-9, 0.1), epochs=30) >= 0.95
    assert linear_probe_sgd(*train, *test, epochs=30) == good


def test_a_class_that_train_lacks_counts_as_wrong() -> None:
    (x, y), test = blobs(0), blobs(1)
    known = y < 2
    assert linear_probe_sgd(x[known], y[known], *test, epochs=20) <= 2 / 3


@pytest.mark.parametrize("settings", [{"learning_rates": ()}, {"learning_rates": (0.0,)}, {"epochs": 0}])
def test_refusals(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give"):
        linear_probe_sgd(*blobs(0), *blobs(1), **settings)  # type: ignore[arg-type]
