import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.targets import sinkhorn


def scores(samples: int, prototypes: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(samples, prototypes, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)


def plain(x: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """The textbook, entry by entry in float64: alternate unit prototypes and unit samples."""
    q = [[float(torch.exp(value / epsilon)) for value in row] for row in x.double()]
    samples, prototypes = x.shape
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        for k in range(prototypes):
            mass = sum(q[n][k] for n in range(samples))
            for n in range(samples):
                q[n][k] /= mass * prototypes
        for n in range(samples):
            mass = sum(q[n])
            q[n] = [value / (mass * samples) for value in q[n]]
    return torch.tensor([[value * samples for value in row] for row in q], dtype=torch.float64)


def in_logarithms(x: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """The same in float64 on logarithms, for scores whose exponential does not exist."""
    log_q = x.double() / epsilon
    for _ in range(iterations):
        log_q = log_q.log_softmax(0).log_softmax(1)
    return log_q.exp()


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    samples=st.integers(1, 7),
    prototypes=st.integers(2, 9),
    epsilon=st.sampled_from([0.02, 0.05, 1.0]),
    iterations=st.integers(1, 6),
)
def test_equals_the_textbook(samples: int, prototypes: int, epsilon: float, iterations: int):
    x = scores(samples, prototypes, scale=0.3)
    torch.testing.assert_close(
        sinkhorn(x, epsilon=epsilon, iterations=iterations).double(),
        plain(x, epsilon, iterations),
        rtol=1e-5,
        atol=1e-6,
    )


def test_float64_stays_and_is_exact():
    x = scores(6, 5).double()
    codes = sinkhorn(x, epsilon=0.05, iterations=3)
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes, plain(x, 0.05, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1e4])
@pytest.mark.parametrize(("samples", "prototypes"), [(1, 4), (8, 3), (5, 40), (64, 64)])
def test_rows_are_distributions_and_finite_at_any_scale(scale: float, samples: int, prototypes: int):
    x = scores(samples, prototypes, scale)
    codes = sinkhorn(x, epsilon=0.02, iterations=3)
    assert codes.isfinite().all()
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(samples))
    torch.testing.assert_close(codes.double(), in_logarithms(x, 0.02, 3), rtol=5e-2, atol=1e-4)


def test_samples_and_prototypes_far_below_the_maximum_still_get_their_mass():
    # Shifting by one global maximum would leave row 1 and column 2 all zero, and 0/0.
    x = torch.tensor([[900.0, 899.9, 0.0], [0.1, 0.0, -900.0], [899.8, 900.0, 0.2]])
    codes = sinkhorn(x, epsilon=0.05, iterations=3)
    torch.testing.assert_close(codes.double(), in_logarithms(x, 0.05, 3), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(codes.sum(1), torch.ones(3))


def test_uniform_scores_give_uniform_codes():
    codes = sinkhorn(torch.full((5, 8), 0.7), epsilon=0.05, iterations=3)
    torch.testing.assert_close(codes, torch.full((5, 8), 1 / 8))


def test_many_iterations_balance_prototypes_and_leave_samples_normalised():
    codes = sinkhorn(scores(12, 4), epsilon=0.5, iterations=200)
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 3.0))
    torch.testing.assert_close(codes.sum(1), torch.ones(12))


def test_a_favourite_prototype_is_not_given_everything():
    x = scores(40, 4, 0.1)
    x[:, 0] += 5
    assert x.argmax(1).eq(0).all()
    counts = sinkhorn(x, epsilon=0.05, iterations=10).argmax(1).bincount(minlength=4)
    assert counts.min() >= 5


def test_a_common_offset_and_an_offset_of_a_prototype_cancel():
    x = scores(6, 5).double()
    expected = sinkhorn(x, epsilon=0.1, iterations=2)
    torch.testing.assert_close(sinkhorn(x + 3, epsilon=0.1, iterations=2), expected)
    torch.testing.assert_close(sinkhorn(x + torch.arange(5), epsilon=0.1, iterations=2), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype: torch.dtype):
    x = scores(6, 5, 4).to(dtype)
    expected = sinkhorn(x.float(), epsilon=0.05, iterations=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(x, epsilon=0.05, iterations=3)
    assert codes.dtype == torch.float32
    assert torch.equal(codes, expected)


def test_the_input_is_left_alone_and_no_gradient_flows():
    x = scores(4, 3).requires_grad_()
    before = x.detach().clone()
    assert not sinkhorn(x, epsilon=0.05, iterations=3).requires_grad
    assert torch.equal(x, before)


def test_no_samples_give_no_codes():
    assert sinkhorn(torch.empty(0, 3), epsilon=0.05, iterations=3).shape == (0, 3)


@pytest.mark.parametrize(
    ("shape", "epsilon", "iterations", "message"),
    [
        ((3,), 0.05, 3, r"scores must have shape .* got \[3\]"),
        ((2, 3, 4), 0.05, 3, r"scores must have shape .* got \[2, 3, 4\]"),
        ((4, 1), 0.05, 3, r"prototypes >= 2\], got \[4, 1\]"),
        ((4, 3), 0.0, 3, "epsilon must be finite and > 0, got 0.0"),
        ((4, 3), -1.0, 3, "epsilon must be"),
        ((4, 3), float("nan"), 3, "epsilon must be"),
        ((4, 3), float("inf"), 3, "epsilon must be"),
        ((4, 3), 0.05, 0, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(shape: tuple[int, ...], epsilon: float, iterations: int, message: str):
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.zeros(shape), epsilon=epsilon, iterations=iterations)
