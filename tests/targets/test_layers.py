from typing import Any

import pytest
import torch

from selfdistill.targets import average_layers


def blocks(count: int, shape: tuple[int, ...] = (2, 5, 4)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * (i + 1) + i for i in range(count)]


def standardise(x: torch.Tensor, dim: int) -> torch.Tensor:
    return (x - x.mean(dim, keepdim=True)) / (x.var(dim, keepdim=True, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("top_k", [1, 3, 5])
@pytest.mark.parametrize("norm", ["layer", "instance", None])
@pytest.mark.parametrize("post_norm", [True, False])
def test_equals_normalise_stack_mean(top_k: int, norm: Any, post_norm: bool):
    layers = blocks(5)
    dim = {"layer": 2, "instance": 1, None: None}[norm]
    chosen = [layer.double() if dim is None else standardise(layer.double(), dim) for layer in layers[5 - top_k :]]
    expected = torch.stack(chosen).mean(0)
    if post_norm:
        expected = standardise(expected, 2)
    out = average_layers(layers, top_k=top_k, norm=norm, post_norm=post_norm)
    torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)


def test_one_layer_as_it_is():
    layers = blocks(3)
    assert torch.equal(average_layers(layers, top_k=1, norm=None, post_norm=False), layers[-1])


@pytest.mark.parametrize("norm", ["layer", "instance"])
def test_scale_of_a_layer_does_not_matter_once_normalised(norm: Any):
    layers = blocks(3)
    scaled = [layer * 10**i for i, layer in enumerate(layers)]
    out = average_layers(layers, top_k=3, norm=norm, post_norm=False)
    torch.testing.assert_close(average_layers(scaled, top_k=3, norm=norm, post_norm=False), out, rtol=1e-3, atol=1e-3)


def test_earlier_layers_may_have_other_shapes():
    layers = [torch.zeros(1, 9, 9), *blocks(2)]
    assert average_layers(layers, top_k=2, norm="layer", post_norm=True).shape == (2, 5, 4)


def test_constant_tokens_stay_finite():
    layers = [torch.full((1, 3, 4), 7.0)] * 2
    for norm in ("layer", "instance"):
        out = average_layers(layers, top_k=2, norm=norm, post_norm=True)
        torch.testing.assert_close(out, torch.zeros(1, 3, 4), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer", "instance", None])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype: torch.dtype, norm: Any):
    layers = [layer.to(dtype) for layer in blocks(3)]
    expected = average_layers([layer.float() for layer in layers], top_k=2, norm=norm, post_norm=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = average_layers(layers, top_k=2, norm=norm, post_norm=True)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


def test_the_layers_are_left_alone_and_float64_stays():
    layers = [layer.double() for layer in blocks(2)]
    before = [layer.clone() for layer in layers]
    assert average_layers(layers, top_k=2, norm=None, post_norm=False).dtype == torch.float64
    assert all(map(torch.equal, layers, before))


@pytest.mark.parametrize(
    ("layers", "top_k", "norm", "message"),
    [
        (blocks(3), 0, None, r"top_k must be in \[1, 3\], the number of layers, got 0"),
        (blocks(3), 4, None, r"top_k must be in \[1, 3\]"),
        ([], 1, None, r"top_k must be in \[1, 0\]"),
        (blocks(3), 2, "batch", "norm must be .* got 'batch'"),
        (blocks(1, (2, 4)), 1, None, r"layers must share one shape .* got \[\(2, 4\)\]"),
        ([*blocks(1, (1, 4, 3)), *blocks(1)], 2, None, "layers must share one shape"),
        (blocks(1, (2, 1, 4)), 1, "instance", "at least 2 tokens, got 1"),
    ],
)
def test_bad_input_is_refused(layers: list[torch.Tensor], top_k: int, norm: Any, message: str):
    with pytest.raises(ValueError, match=message):
        average_layers(layers, top_k=top_k, norm=norm, post_norm=True)
