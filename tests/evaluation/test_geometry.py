import math
from itertools import combinations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import selfdistill.evaluation.geometry as geometry
from selfdistill.evaluation.geometry import (
    alignment,
    effective_rank,
    feature_std,
    kl_and_entropy,
    mean_cosine,
    prototype_entropy,
    rankme,
    uniformity,
)

OF_FEATURES = [effective_rank, rankme, feature_std, uniformity, mean_cosine]


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def exp_entropy(weights: np.ndarray) -> float:
    return float(np.exp(scipy.stats.entropy(weights)))


def slow_uniformity(x: Tensor, t: float) -> float:
    unit = (x.double() / x.double().norm(dim=1, keepdim=True)).numpy()
    terms = [math.exp(-t * float(((a - b) ** 2).sum())) for a, b in combinations(unit, 2)]
    return math.log(sum(terms) / len(terms))


@pytest.mark.parametrize("dim", [1, 2, 7, 64])
def test_isotropic_features_use_all_dimensions(dim: int) -> None:
    x = 3 * torch.cat([torch.eye(dim), -torch.eye(dim)])
    assert effective_rank(x).item() == pytest.approx(dim, rel=1e-6)
    assert effective_rank(x + 5).item() == pytest.approx(dim, rel=1e-6)
    assert rankme(x).item() == pytest.approx(dim, rel=1e-4)
    assert feature_std(x).item() == pytest.approx(1, rel=1e-6)


def test_features_on_a_line_have_rank_one() -> None:
    x = gaussian(300, 1) @ gaussian(1, 200, 1)
    assert effective_rank(x).item() == pytest.approx(1, abs=1e-5)
    assert effective_rank(x + gaussian(1, 200, 2)).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(100, 20), (20, 100), (50, 50), (2, 9), (9, 2)])
def test_ranks_equal_numpys_decompositions(shape: tuple[int, int]) -> None:
    x = gaussian(*shape) * torch.linspace(0.1, 3, shape[1]) + 1
    array = x.double().numpy()
    covariance = np.linalg.eigvalsh(np.cov(array, rowvar=False)).clip(0)
    assert effective_rank(x).item() == pytest.approx(exp_entropy(covariance), rel=1e-5)
    sigma = np.linalg.svd(array, compute_uv=False)
    share = sigma / sigma.sum() + 1e-7
    assert rankme(x).item() == pytest.approx(float(np.exp(scipy.special.entr(share).sum())), rel=1e-5)


def test_both_ranks_follow_known_spectra() -> None:
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    x = torch.cat([x, -x])
    assert effective_rank(x).item() == pytest.approx(exp_entropy(np.array([9, 4, 1])), rel=1e-6)
    assert rankme(x).item() == pytest.approx(exp_entropy(np.array([3, 2, 1])), rel=1e-5)


@pytest.mark.parametrize(("eps", "expected"), [(1e-7, 1.0033), (1e-5, 1.2657)])
def test_rankme_of_rank_one_has_the_bias_of_its_eps(eps: float, expected: float) -> None:
    # 2048 singular values, one of them not zero; a constant row keeps the decomposition quick.
    x = torch.zeros(2048, 2048)
    x[:, 0] = 1
    assert rankme(x, eps).item() == pytest.approx(expected, abs=5e-5)


def test_rounding_adds_nothing_to_rankme() -> None:
    x = gaussian(300, 1).double() @ gaussian(1, 200, 1).double()
    eps = 1e-7
    expected = math.exp(-(1 + eps) * math.log1p(eps) - 199 * eps * math.log(eps))
    assert rankme(x).item() == pytest.approx(expected, abs=1e-7)


def test_an_offset_lowers_rankme_and_leaves_effective_rank() -> None:
    x = gaussian(2000, 64)
    assert rankme(x).item() > 60
    assert rankme(x + 10).item() < 0.6 * rankme(x).item()
    assert effective_rank(x + 10).item() == pytest.approx(effective_rank(x).item(), rel=1e-4)


def test_variation_within_rounding_is_no_variation() -> None:
    x = (100 + gaussian(1, 32)).expand(64, 32)
    assert effective_rank(x).item() == 1
    assert effective_rank(x + 1e-6 * gaussian(64, 32, 1)).item() == 1
    assert effective_rank((x + 0.01 * gaussian(64, 32, 1)).bfloat16()).item() == 1
    assert effective_rank(x + 0.01 * gaussian(64, 32, 1)).item() > 15


def test_feature_std_of_gaussian_and_collapsed_features() -> None:
    assert feature_std(gaussian(4000, 128)).item() == pytest.approx(1, abs=0.01)
    assert feature_std(gaussian(4000, 128) * 1e-25).item() == pytest.approx(1, abs=0.01)
    half = torch.cat([gaussian(4000, 64), torch.zeros(4000, 64)], 1)
    assert feature_std(half).item() == pytest.approx(1 / math.sqrt(2), abs=0.01)
    # A shared direction much longer than the variation.
    assert feature_std(gaussian(400, 64) + 100).item() < 0.02


def test_feature_std_equals_its_definition() -> None:
    x = gaussian(30, 6)
    unit = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    assert feature_std(x).item() == pytest.approx(unit.std(0).mean() * math.sqrt(6), rel=1e-5)


@pytest.mark.parametrize("alpha", [1, 2, 3])
def test_alignment_equals_its_definition(alpha: float) -> None:
    x, y = gaussian(20, 5), gaussian(20, 5, 1)
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (x, y))
    expected = np.mean([math.dist(p, q) ** alpha for p, q in zip(a.tolist(), b.tolist(), strict=True)])
    assert alignment(x, y, alpha).item() == pytest.approx(expected, rel=1e-5)
    assert alignment(x, 7 * x).item() == pytest.approx(0, abs=1e-10)
    assert alignment(x, -x).item() == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 1024])
@pytest.mark.parametrize("t", [0.5, 2, 20])
def test_uniformity_equals_its_definition(rows: int, t: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_ROWS", rows)
    x = gaussian(23, 6)
    assert uniformity(x, t).item() == pytest.approx(slow_uniformity(x, t), rel=1e-6)


def test_alignment_and_uniformity_serve_as_losses() -> None:
    x, y = (gaussian(5, 3, seed).double().requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(alignment, (x, y))
    assert torch.autograd.gradcheck(uniformity, (x,))


def test_uniformity_of_known_points() -> None:
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]])).item() == pytest.approx(-8, rel=1e-6)
    square = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert uniformity(square).item() == pytest.approx(math.log((2 * math.exp(-8) + 4 * math.exp(-4)) / 6))


def test_mean_cosine_equals_its_definition() -> None:
    x = gaussian(25, 6) + 0.5
    expected = np.mean([np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(x.numpy(), 2)])
    assert mean_cosine(x).item() == pytest.approx(float(expected), rel=1e-5)
    assert mean_cosine(torch.eye(4)).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("x", "collapsed"),
    [
        (torch.full((8, 5), 0.3), True),
        (torch.full((1, 5), 0.3), True),
        (torch.full((8, 1), 0.3), True),
        (torch.tensor([[1e-30, 3e-30]]).expand(6, 2), True),
        (torch.tensor([[1e30, 3e30]]).expand(6, 2), True),
        (torch.zeros(8, 5), False),
        (torch.cat([torch.zeros(4, 5), torch.ones(1, 5)]), False),
        (gaussian(3, 50), False),
    ],
)
def test_degenerate_features_give_finite_measures(x: Tensor, collapsed: bool) -> None:
    values = {f.__name__: f(x) for f in OF_FEATURES} | {"alignment": alignment(x, x)}
    assert all(torch.isfinite(v) for v in values.values()), values
    if collapsed:
        for name, expected in {
            "effective_rank": 1,
            "rankme": 1,
            "feature_std": 0,
            "uniformity": 0,
            "mean_cosine": 1,
        }.items():
            assert values[name].item() == pytest.approx(expected, abs=1e-5), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_diverged_features_give_nan_and_no_error(bad: float) -> None:
    x = gaussian(8, 5)
    x[2, 3] = bad
    assert all(torch.isnan(f(x)) for f in OF_FEATURES)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.floats(0, 10))
def test_measures_stay_in_their_ranges(n: int, d: int, seed: int, offset: float) -> None:
    x = gaussian(n, d, seed) + offset
    assert 1 - 1e-5 <= effective_rank(x).item() <= max(1, min(n - 1, d)) + 1e-4
    assert 1 - 1e-5 <= rankme(x).item() <= min(n, d) + 1e-3
    assert 0 <= feature_std(x).item() <= 1 + 1e-5
    assert -8 - 1e-5 <= uniformity(x).item() <= 1e-6
    assert -1 - 1e-5 <= mean_cosine(x).item() <= 1 + 1e-5


@pytest.mark.parametrize("measure", OF_FEATURES)
def test_dtypes_and_autocast(measure: object) -> None:
    assert callable(measure)
    x = gaussian(40, 12) + 0.2
    for given_dtype, wanted in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        value = measure(x.to(given_dtype))
        assert value.shape == ()
        assert value.dtype == wanted
        torch.testing.assert_close(value, measure(x.to(given_dtype).double()).to(wanted), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(measure(x), measure(x.double()).float(), rtol=1e-5, atol=1e-6)


def test_features_of_other_shapes_are_refused_in_one_line() -> None:
    for measure in OF_FEATURES:
        for x in (torch.ones(3), torch.ones(2, 3, 4), torch.ones(0, 3)):
            with pytest.raises(ValueError, match=r"must be \[N, D\]") as caught:
                measure(x)
            assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="two views"):
        alignment(torch.ones(2, 3), torch.ones(3, 3))


def test_prototype_entropy_equals_scipy() -> None:
    logits = gaussian(50, 9) * 3
    p = scipy.special.softmax(logits.double().numpy() / 0.5, axis=1)
    expected = scipy.stats.entropy(p.mean(0)), scipy.stats.entropy(p, axis=1).mean()
    for found in (
        prototype_entropy(logits, temperature=0.5),
        prototype_entropy(torch.tensor(p), probabilities=True),
        prototype_entropy(logits.view(2, 25, 9), temperature=0.5),
    ):
        assert found.mean_entropy.item() == pytest.approx(expected[0], rel=1e-5)
        assert found.entropy_mean.item() == pytest.approx(expected[1], rel=1e-5)


def test_prototype_entropy_of_the_three_states() -> None:
    spread = prototype_entropy(100 * torch.eye(8))
    assert (spread.mean_entropy.item(), spread.entropy_mean.item()) == pytest.approx((math.log(8), 0), abs=1e-6)
    cluster = prototype_entropy(100 * torch.eye(8)[[3] * 5])
    assert (cluster.mean_entropy.item(), cluster.entropy_mean.item()) == pytest.approx((0, 0), abs=1e-6)
    uniform = prototype_entropy(torch.zeros(5, 8))
    assert (uniform.mean_entropy.item(), uniform.entropy_mean.item()) == pytest.approx((math.log(8),) * 2)
    one_hot = prototype_entropy(torch.eye(8), probabilities=True)
    assert one_hot.entropy_mean.item() == 0


def test_kl_and_entropy_equal_scipy_and_sum_to_the_cross_entropy() -> None:
    teacher, student = gaussian(30, 7) * 3, gaussian(30, 7, 1) * 2
    p = scipy.special.softmax(teacher.double().numpy() / 0.5, axis=1)
    q = scipy.special.softmax(student.double().numpy() / 0.2, axis=1)
    found = kl_and_entropy(teacher, student, teacher_temperature=0.5, student_temperature=0.2)
    assert found.kl.item() == pytest.approx(scipy.stats.entropy(p, q, axis=1).mean(), rel=1e-5)
    assert found.entropy.item() == pytest.approx(scipy.stats.entropy(p, axis=1).mean(), rel=1e-5)
    cross_entropy = -(p * np.log(q)).sum(1).mean()
    assert (found.kl + found.entropy).item() == pytest.approx(cross_entropy, rel=1e-5)


def test_kl_of_equals_and_of_excluded_prototypes() -> None:
    logits = gaussian(6, 5) * 50
    assert kl_and_entropy(logits, logits).kl.item() == 0
    excluded = torch.tensor([[0.0, 0.0, -torch.inf]])
    found = kl_and_entropy(excluded, excluded)
    assert (found.kl.item(), found.entropy.item()) == pytest.approx((0, math.log(2)))
    assert kl_and_entropy(1000 * logits.half(), -logits.half()).kl.item() > 0


def test_logits_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="same images"):
        kl_and_entropy(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="student_temperature=0"):
        kl_and_entropy(torch.ones(2, 3), torch.ones(2, 3), student_temperature=0)
    with pytest.raises(ValueError, match="temperature=-1"):
        prototype_entropy(torch.ones(2, 3), temperature=-1)
    with pytest.raises(ValueError, match="scalar"):
        prototype_entropy(torch.tensor(1.0))
    with pytest.raises(ValueError, match="not empty"):
        prototype_entropy(torch.ones(0, 3))
