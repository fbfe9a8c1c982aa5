import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfdistill.regularizers import koleo, me_max, variance_covariance


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = loss(x)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


# --- koleo


def slow_koleo(features: Tensor) -> float:
    rows = [[value / math.hypot(*row) for value in row] for row in features.double().tolist()]
    total = 0.0
    for i, row in enumerate(rows):
        total -= math.log(min(math.dist(row, other) for j, other in enumerate(rows) if j != i) + 1e-8)
    return total / len(rows)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(n=st.integers(2, 12), d=st.integers(2, 6), seed=st.integers(0, 99))
def test_koleo_equals_a_double_loop(n: int, d: int, seed: int):
    features = randn(n, d, seed=seed)
    assert koleo(features).item() == pytest.approx(slow_koleo(features), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("n", [127, 128, 129, 257, 400])
def test_koleo_of_many_rows_equals_a_double_loop(n: int):
    """Nearest rows lie in the same stretch of rows, before and behind it."""
    features = randn(n, 16, seed=n, dtype=torch.float64)
    assert koleo(features).item() == pytest.approx(slow_koleo(features), rel=1e-9)


def test_koleo_of_two_opposite_points():
    # A diagonal of -1 or -2 instead of -inf makes a point its own neighbour here: 8.4 or 18.4.
    assert koleo(torch.tensor([[3.0, 4.0], [-0.6, -0.8]])).item() == pytest.approx(-math.log(2))


def test_koleo_of_a_regular_polygon():
    angles = torch.arange(7) * (2 * math.pi / 7)
    features = torch.stack([angles.cos(), angles.sin()], 1)
    assert koleo(features).item() == pytest.approx(-math.log(2 * math.sin(math.pi / 7)), rel=1e-5)


def test_koleo_gradient():
    assert torch.autograd.gradcheck(koleo, randn(6, 4, dtype=torch.float64).requires_grad_())


def test_koleo_says_that_it_has_no_second_derivative() -> None:
    features = randn(6, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="koleo: its gradient has no gradient of its own"):
        torch.autograd.grad(koleo(features), features, create_graph=True)


def test_koleo_descent_pushes_close_points_apart():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    value, gradient = value_and_gradient(koleo, features)
    assert koleo(features - 0.01 * gradient) < value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_koleo_is_finite_at_duplicates(dtype: torch.dtype):
    duplicated = randn(3, 8, dtype=dtype).repeat(2, 1)
    value, gradient = value_and_gradient(koleo, duplicated)
    assert value.item() == pytest.approx(-math.log(1e-8))
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype

    # Duplicates up to rounding once normalised, and zero rows; the rows beside them keep their gradient.
    mixed = torch.cat([torch.zeros(1, 8, dtype=dtype), duplicated[:3], 3 * duplicated[:1]])
    value, gradient = value_and_gradient(koleo, mixed)
    assert value.isfinite()
    assert gradient.abs().max() < 1e4
    assert gradient[2:4].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_koleo_in_half_precision_is_float32_also_under_autocast(dtype: torch.dtype):
    # Close together: similarities in bfloat16 would tie and pick wrong neighbours.
    features = (1 + 0.1 * randn(32, 8)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = koleo(features)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(slow_koleo(features), rel=1e-4)


# --- me_max


def slow_me_max(logits: Tensor, temperature: float) -> float:
    mean = (logits.double() / temperature).softmax(1).mean(0)
    return math.log(logits.shape[1]) + sum(p * math.log(p) for p in mean.tolist() if p > 0)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    n=st.integers(1, 9),
    k=st.integers(2, 12),
    temperature=st.sampled_from([0.02, 0.1, 1.0, 10.0]),
    scale=st.sampled_from([0.1, 1.0, 100.0]),
)
def test_me_max_equals_the_definition(n: int, k: int, temperature: float, scale: float):
    logits = randn(n, k) * scale
    assert me_max(logits, temperature).item() == pytest.approx(slow_me_max(logits, temperature), rel=1e-4, abs=2e-6)


def test_me_max_bounds():
    one_cluster = torch.zeros(6, 5)
    one_cluster[:, 2] = 1e4
    assert me_max(one_cluster, 0.1).item() == pytest.approx(math.log(5))
    balanced = 1e4 * torch.eye(5).repeat(3, 1)
    assert 0 <= me_max(balanced, 0.1).item() < 1e-6
    for k in (2, 3, 7, 1000):
        assert 0 <= me_max(torch.zeros(4, k)).item() < 1e-5
    half = 1e4 * torch.eye(4)[[0, 1, 0, 1]]
    assert me_max(half, 0.1).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_me_max_gradient(temperature: float):
    logits = randn(5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: me_max(x, temperature), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_me_max_is_finite_for_extreme_logits(dtype: torch.dtype, scale: float, temperature: float):
    logits = (randn(8, 6).clamp(-1, 1) * scale).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(lambda x: me_max(x, temperature), logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(slow_me_max(logits, temperature), rel=1e-3, abs=1e-5)
    assert gradient.isfinite().all()


# --- variance_covariance


def slow_variance_covariance(x: Tensor, target: float, eps: float) -> tuple[float, float]:
    columns = x.double().T.tolist()
    n, d = x.shape
    columns = [[value - sum(column) / n for value in column] for column in columns]
    covariance = [[sum(map(float.__mul__, a, b)) / (n - 1) for b in columns] for a in columns]
    variance = sum(max(0.0, target - math.sqrt(covariance[i][i] + eps)) for i in range(d)) / d
    return variance, sum(covariance[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d


@settings(derandomize=True, deadline=None, max_examples=25)
@given(n=st.integers(2, 9), d=st.integers(1, 7), target=st.sampled_from([0.5, 1.0, 3.0]))
def test_variance_covariance_equals_the_definition(n: int, d: int, target: float):
    x = randn(n, d) * torch.linspace(0.2, 2, d) + 5
    variance, covariance = variance_covariance(x, variance_target=target)
    expected = slow_variance_covariance(x, target, 1e-4)
    assert variance.item() == pytest.approx(expected[0], rel=1e-4, abs=1e-5)
    assert covariance.item() == pytest.approx(expected[1], rel=1e-4, abs=1e-5)


def test_variance_covariance_closed_forms():
    collapsed = value_and_gradient(lambda x: sum(variance_covariance(x), torch.zeros(())), torch.full((4, 3), 2.0))
    assert collapsed[0].item() == pytest.approx(1 - 0.01)
    assert collapsed[1].isfinite().all()

    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert [term.item() for term in variance_covariance(corners)] == [0, 0]

    # Two equal columns of variance 4/3: two off-diagonal entries of 4/3, over two dimensions.
    equal = corners[:, :1].expand(4, 2)
    assert variance_covariance(equal)[1].item() == pytest.approx((4 / 3) ** 2)


def test_variance_covariance_gradient():
    x = (0.5 * randn(6, 4, dtype=torch.float64) + 3).requires_grad_()
    assert torch.autograd.gradcheck(variance_covariance, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_variance_covariance_in_half_precision_is_float32_also_under_autocast(dtype: torch.dtype):
    x = randn(16, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = variance_covariance(x)
    for term, expected in zip(terms, variance_covariance(x.float()), strict=True):
        assert term.dtype == torch.float32
        assert torch.equal(term, expected)


# --- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: koleo(torch.zeros(1, 4)),
            r"features must have shape \[samples >= 2, features\], got \[1, 4\]",
        ),
        (lambda: koleo(torch.zeros(2, 3, 4)), "features must have shape"),
        (lambda: koleo(torch.zeros(2, 4), eps=0.0), "eps must be finite and > 0, got 0.0"),
        (lambda: me_max(torch.zeros(4)), r"logits must have shape .* got \[4\]"),
        (lambda: me_max(torch.zeros(0, 4)), "samples >= 1"),
        (lambda: me_max(torch.zeros(4, 1)), "clusters >= 2"),
        (lambda: me_max(torch.zeros(4, 2), 0.0), "temperature must be finite and > 0, got 0.0"),
        (lambda: me_max(torch.zeros(4, 2), math.nan), "temperature must be"),
        (lambda: variance_covariance(torch.zeros(1, 4)), "x must have shape"),
        (lambda: variance_covariance(torch.zeros(3, 4), variance_target=-1.0), "variance_target must be"),
        (lambda: variance_covariance(torch.zeros(3, 4), eps=0.0), "eps must be"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_koleo_does_not_hide_a_nan() -> None:
    features = torch.randn(4, 3)
    features[1, 0] = float("nan")
    assert not torch.isfinite(koleo(features))
