from __future__ import annotations

import copy
import math

import pytest
import torch

from selfdistill.heads import LatentPredictor, sincos_2d


@pytest.fixture
def predictor() -> LatentPredictor:
    torch.manual_seed(0)
    module = LatentPredictor(10, (3, 4), width=16, depth=2, heads=2)
    with torch.no_grad():
        # The start is so small that nothing depends on anything visibly.
        for p in module.parameters():
            p.normal_(std=0.3)
    return module


def positions(batch: int, count: int) -> torch.Tensor:
    return torch.rand(batch, 12).argsort(1)[:, :count]


@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (2, 7)])
def test_sincos_against_the_formula(grid: tuple[int, int]) -> None:
    table = sincos_2d(8, grid)
    assert table.shape == (grid[0] * grid[1], 8)
    assert table.dtype == torch.float32
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = [
                wave(position * 10000 ** (-i / 2))
                for position in (column, row)
                for wave in (math.sin, math.cos)
                for i in range(2)
            ]
            torch.testing.assert_close(table[row * grid[1] + column], torch.tensor(expected))


def test_sincos_tells_positions_apart() -> None:
    table = sincos_2d(32, (14, 14))
    # Half of the features are squares of sines and cosines that pair up.
    torch.testing.assert_close(table.square().sum(1), torch.full((196,), 16.0))
    distances = torch.cdist(table, table) + torch.eye(196)
    assert distances.min() > 0.1


def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def test_equals_a_transformer_written_out(predictor: LatentPredictor) -> None:
    predictor.double()
    weights = predictor.state_dict()
    context, where, wanted = torch.randn(2, 5, 10).double(), positions(2, 5), positions(2, 4)
    full = predictor(context, where, wanted)
    table = sincos_2d(16, (3, 4)).double()
    for b in range(2):
        known = torch.stack([linear(context[b, i], weights, "embed") + table[where[b, i]] for i in range(5)])
        asked = torch.stack([weights["mask_token"][0, 0] + table[wanted[b, i]] for i in range(4)])
        x = torch.cat([known, asked])
        for index in range(2):
            block = f"blocks.{index}"
            q, k, v = linear(norm(x, weights, f"{block}.norm1"), weights, f"{block}.attn.qkv").split(16, dim=1)
            mixed = []
            for head in (slice(0, 8), slice(8, 16)):
                attention = (q[:, head] @ k[:, head].T / 8**0.5).softmax(1)
                mixed.append(attention @ v[:, head])
            x = x + linear(torch.cat(mixed, dim=1), weights, f"{block}.attn.proj")
            hidden = linear(norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1")
            hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
            x = x + linear(hidden, weights, f"{block}.mlp.fc2")
        expected = linear(norm(x[5:], weights, "norm"), weights, "unembed")
        torch.testing.assert_close(full[b], expected)


def test_shapes(predictor: LatentPredictor) -> None:
    context, where = torch.randn(3, 5, 10), positions(3, 5)
    assert predictor(context, where, positions(3, 4)).shape == (3, 4, 10)
    assert predictor(context, where, torch.stack([positions(3, 2)] * 6, dim=1)).shape == (3, 6, 2, 10)


def test_blocks_are_predicted_apart(predictor: LatentPredictor) -> None:
    context, where = torch.randn(3, 5, 10), positions(3, 5)
    targets = torch.stack([positions(3, 4) for _ in range(3)], dim=1)
    together = predictor(context, where, targets)
    for m in range(3):
        torch.testing.assert_close(together[:, m], predictor(context, where, targets[:, m]))


def test_images_are_predicted_apart(predictor: LatentPredictor) -> None:
    context, where, wanted = torch.randn(3, 5, 10), positions(3, 5), positions(3, 4)
    full = predictor(context, where, wanted)
    torch.testing.assert_close(full[1:2], predictor(context[1:2], where[1:2], wanted[1:2]))


def test_order_of_tokens_does_not_matter(predictor: LatentPredictor) -> None:
    context, where, wanted = torch.randn(2, 5, 10), positions(2, 5), positions(2, 4)
    full = predictor(context, where, wanted)
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(predictor(context[:, shuffle], where[:, shuffle], wanted), full)
    turn = torch.tensor([2, 3, 0, 1])
    torch.testing.assert_close(predictor(context, where, wanted[:, turn]), full[:, turn])


def test_positions_matter(predictor: LatentPredictor) -> None:
    context, where, wanted = torch.randn(2, 5, 10), positions(2, 5), positions(2, 4)
    full = predictor(context, where, wanted)
    assert (predictor(context, where, (wanted + 1) % 12) - full).abs().amax() > 1e-3
    assert (predictor(context, (where + 1) % 12, wanted) - full).abs().amax() > 1e-3


def test_every_parameter_and_the_context_get_a_gradient(predictor: LatentPredictor) -> None:
    context = torch.randn(2, 5, 10, requires_grad=True)
    predictor(context, positions(2, 5), positions(2, 4)).square().sum().backward()
    assert context.grad.abs().amin(dim=(0, 2)).gt(0).all()
    for name, p in predictor.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_the_table_is_fixed_and_not_stored(predictor: LatentPredictor) -> None:
    assert not any("positions" in name for name in predictor.state_dict())
    torch.testing.assert_close(copy.deepcopy(predictor).positions, sincos_2d(16, (3, 4)))


def test_start() -> None:
    torch.manual_seed(0)
    module = LatentPredictor(64, (2, 2), width=64, depth=3, heads=4)
    assert module.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not module.unembed.bias.any()
    assert 0 < module.mask_token.std().item() < 0.04
    for index, block in enumerate(module.blocks, start=1):
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for layer in (block.attn.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * index), rel=0.05)


def test_autocast(predictor: LatentPredictor) -> None:
    context, where, wanted = torch.randn(2, 5, 10), positions(2, 5), positions(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert predictor(context, where, wanted).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 20, "heads": 8}, "width: got 20, allowed are multiples of heads = 8"),
        ({"width": 18, "heads": 2}, "dim: got 18, allowed are positive multiples of 4"),
        ({"depth": 0}, "depth: got 0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentPredictor(10, (3, 4), **{"width": 16, "heads": 2, **arguments})
