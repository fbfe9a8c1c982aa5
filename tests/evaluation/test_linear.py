from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from selfdistill.evaluation import linear, linear_probe
from selfdistill.evaluation.linear import _fit, standardisation


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    # Only a few images to learn from, so that the penalty matters.
    images, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return images[:300], labels[:300], images[600:], labels[600:]


def reference(x: Tensor, y: Tensor, l2: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(x.double().numpy())
    model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=5000)
    return scaler, model.fit(scaler.transform(x.double().numpy()), y.numpy())


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_classifier_equals_scikit_learn(digits: tuple[Tensor, ...], l2: float) -> None:
    x, y, test_x, test_y = digits
    scaler, model = reference(x, y, l2)
    mean, scale = standardisation(x)
    np.testing.assert_allclose(((test_x - mean) / scale), scaler.transform(test_x.numpy()), atol=1e-4)
    classifier = _fit((x - mean) / scale, y, 10, l2, max_iter=500)
    np.testing.assert_allclose(classifier[:, :-1], model.coef_, atol=2e-3)
    expected = model.score(scaler.transform(test_x.numpy()), test_y.numpy())
    assert linear_probe(x, y, test_x, test_y, l2=l2, max_iter=500) == pytest.approx(expected, abs=1e-3)


def test_the_grid_takes_what_does_best_held_out_and_refits_on_all() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, 20, generator=generator)
    y = (x[:, :3] + torch.randn(900, 3, generator=generator)).argmax(1)
    x, test_x, y, test_y = x[:150], x[150:], y[:150], y[150:]
    grid = (1e-3, 1e-1, 30.0)
    held_out = torch.zeros(len(x), dtype=torch.bool)
    for label in range(3):
        held_out[(y == label).nonzero().flatten()[4::5]] = True
    losses = {}
    for l2 in grid:
        scaler, model = reference(x[~held_out], y[~held_out], l2)
        probabilities = model.predict_proba(scaler.transform(x[held_out].double().numpy()))
        losses[l2] = log_loss(y[held_out].numpy(), probabilities)
    assert min(grid, key=lambda l2: losses[l2]) == 1e-1
    each = {l2: linear_probe(x, y, test_x, test_y, l2=l2) for l2 in grid}
    assert len(set(each.values())) == 3
    assert linear_probe(x, y, test_x, test_y, l2=grid) == each[1e-1]


def test_default_is_deterministic_and_touches_no_random_state(digits: tuple[Tensor, ...]) -> None:
    state = torch.get_rng_state()
    first = linear_probe(*digits)
    assert linear_probe(*digits) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.85 < first < 1


def test_scale_offset_and_constant_dimensions_do_not_matter(digits: tuple[Tensor, ...]) -> None:
    x, y, test_x, test_y = digits
    expected = linear_probe(x, y, test_x, test_y, l2=1e-2)
    scale, offset = torch.logspace(-3, 3, 64), torch.linspace(-5, 5, 64)
    constant = torch.full((1, 2), 0.1)

    def distort(features: Tensor) -> Tensor:
        return torch.cat([features * scale + offset * scale, constant.expand(len(features), 2)], 1)

    assert linear_probe(distort(x), y, distort(test_x), test_y, l2=1e-2) == pytest.approx(expected, abs=2e-3)


def test_modes_of_lightnings_validation_change_nothing(digits: tuple[Tensor, ...]) -> None:
    expected = linear_probe(*digits, l2=1e-2, max_iter=20)
    with torch.no_grad():
        assert linear_probe(*digits, l2=1e-2, max_iter=20) == expected
    with torch.inference_mode():
        cached = [part.clone() for part in digits]
        assert cached[0].is_inference()
        assert linear_probe(*cached, l2=1e-2, max_iter=20) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_probe(*digits, l2=1e-2, max_iter=20) == expected


def test_gradients_do_not_reach_the_features() -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    linear_probe(x, torch.arange(20) % 2, x, torch.arange(20) % 2, l2=1.0)
    assert x.grad is None


def test_rounding_noise_is_not_blown_up_to_a_feature() -> None:
    noisy = torch.full((100, 2), 1e4)
    noisy[::2, 0] = torch.nextafter(noisy[0, 0], torch.tensor(torch.inf))
    noisy[::2, 1] = 1e4 + 1
    _, scale = standardisation(noisy)
    assert scale.tolist() == pytest.approx([1, 0.5])


def test_rare_classes_are_never_held_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[set[int]] = []

    def fit(x: Tensor, y: Tensor, *rest: Any, **start: Any) -> Tensor:
        fitted.append(set(y.tolist()))
        return _fit(x, y, *rest, **start)

    monkeypatch.setattr(linear, "_fit", fit)
    labels = torch.tensor([0] * 9 + [1] * 4 + [2])
    x = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
    linear_probe(x, labels, x, labels, l2=(0.1, 1.0))
    assert fitted == [{0, 1, 2}] * 3


def test_few_images_single_classes_and_unseen_classes() -> None:
    x = torch.eye(3)
    labels = torch.tensor([2, 50, 10**9])
    assert linear_probe(x, labels, x, labels) == 1.0
    assert linear_probe(x, labels, x, labels + 1) == 0.0
    assert linear_probe(x, torch.zeros(3, dtype=torch.int64), x, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    assert linear_probe(x * torch.nan, labels, x * torch.nan, labels, l2=0.1) == pytest.approx(1 / 3)
    assert linear_probe(x.half(), labels, x.double(), labels) == 1.0


@pytest.mark.parametrize(
    "change", [{"l2": -1.0}, {"l2": ()}, {"l2": float("nan")}, {"max_iter": 0}, {"train_y": torch.zeros(2)}]
)
def test_bad_input_is_refused_in_one_line(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "train_x": torch.eye(2),
        "train_y": torch.arange(2),
        "test_x": torch.eye(2),
        "test_y": torch.arange(2),
    }
    with pytest.raises((ValueError, TypeError)) as caught:
        linear_probe(**(good | change))
    assert "\n" not in str(caught.value)
