from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from selfdistill.heads import MLP

# Each published head, as a list of layers written out, beside the arguments that must build it: 6 -> 10 -> 4.
RELU, GELU = nn.ReLU, nn.GELU


def linear(a: int, b: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(a, b, bias=bias)


def batch(width: int, affine: bool = True) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, affine=affine)


HEADS = {
    "byol": (
        {"output_bias": False},
        lambda: [linear(6, 10), batch(10), RELU(), linear(10, 4, False)],
    ),
    "simsiam_projector": (
        {"layers": 3, "bias": False, "output_bias": False, "output_norm": "batch_affine_free"},
        lambda: [
            *(linear(6, 10, False), batch(10), RELU()),
            *(linear(10, 10, False), batch(10), RELU()),
            *(linear(10, 4, False), batch(4, False)),
        ],
    ),
    "simsiam_predictor": (
        {"bias": False},
        lambda: [linear(6, 10, False), batch(10), RELU(), linear(10, 4)],
    ),
    "moco_v2_and_ressl": ({"norm": None}, lambda: [linear(6, 10), RELU(), linear(10, 4)]),
    "moco_v3_resnet_projector": (
        {"bias": False, "output_bias": False, "output_norm": "batch_affine_free"},
        lambda: [linear(6, 10, False), batch(10), RELU(), linear(10, 4, False), batch(4, False)],
    ),
    "moco_v3_resnet_predictor": (
        {"bias": False, "output_bias": False},
        lambda: [linear(6, 10, False), batch(10), RELU(), linear(10, 4, False)],
    ),
    "swav": ({}, lambda: [linear(6, 10), batch(10), RELU(), linear(10, 4)]),
    "msn": (
        {"layers": 3, "activation": "gelu", "init_std": 0.02},
        lambda: [linear(6, 10), batch(10), GELU(), linear(10, 10), batch(10), GELU(), linear(10, 4)],
    ),
    "dino": (
        {"layers": 3, "norm": None, "activation": "gelu", "init_std": 0.02},
        lambda: [linear(6, 10), GELU(), linear(10, 10), GELU(), linear(10, 4)],
    ),
    "data2vec": ({"layers": 1}, lambda: [linear(6, 4)]),
    "layer_norm": (
        {"norm": "layer", "output_norm": "layer"},
        lambda: [linear(6, 10), nn.LayerNorm(10), RELU(), linear(10, 4), nn.LayerNorm(4)],
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_equals_the_layers_written_out(name: str) -> None:
    arguments, layers = HEADS[name]
    torch.manual_seed(0)
    head = MLP(6, 10, 4, **arguments)
    reference = nn.Sequential(*layers())
    assert [p.shape for p in head.parameters()] == [p.shape for p in reference.parameters()]
    with torch.no_grad():
        for ours, theirs in zip(head.parameters(), reference.parameters(), strict=True):
            theirs.copy_(ours)
    for training in (True, False):
        head.train(training)
        reference.train(training)
        x = torch.randn(8, 6)
        torch.testing.assert_close(head(x), reference(x), rtol=0, atol=0)


def test_leading_dimensions_are_one_batch() -> None:
    torch.manual_seed(0)
    head = MLP(6, 10, 4, output_norm="batch")
    x = torch.randn(2, 3, 5, 6)
    y = head(x)
    assert y.shape == (2, 3, 5, 4)
    torch.testing.assert_close(y, copy.deepcopy(head)(x.reshape(30, 6)).view(2, 3, 5, 4))
    torch.testing.assert_close(y.reshape(30, 4).mean(0), torch.zeros(4), atol=1e-6, rtol=0)


def test_no_samples() -> None:
    assert MLP(6, 10, 4, norm=None)(torch.zeros(0, 6)).shape == (0, 4)


def test_init_std() -> None:
    torch.manual_seed(0)
    layers = list(MLP(200, 300, 100, layers=3, init_std=0.02).modules())
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert len(linears) == 3
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()


def test_copies_and_pickles() -> None:
    head = MLP(6, 10, 4).eval()
    x = torch.randn(3, 6)
    assert torch.equal(copy.deepcopy(head)(x), head(x))
    assert torch.equal(pickle.loads(pickle.dumps(head))(x), head(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers: got 0"),
        ({"hidden_dim": 0}, "hidden_dim: got 0"),
        ({"norm": "instance"}, "norm: got 'instance', allowed are batch, batch_affine_free, layer, None"),
        ({"output_norm": "bn", "layers": 1}, "output_norm: got 'bn'"),
        ({"activation": "silu"}, "activation: got 'silu', allowed are relu, gelu"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**{"in_dim": 6, "hidden_dim": 10, "out_dim": 4, **arguments})


def test_width_is_not_folded_into_the_batch() -> None:
    with pytest.raises(ValueError, match=r"x: got shape \(4, 12\), allowed is \[..., in_dim = 6\]"):
        MLP(6, 10, 4)(torch.zeros(4, 12))
