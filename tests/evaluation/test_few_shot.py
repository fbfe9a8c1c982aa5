import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from torch import Tensor

import selfdistill.evaluation.few_shot as few_shot
from selfdistill.evaluation import FewShotResult, few_shot_accuracy


def clusters(n: int, seed: int, classes: int = 4, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = 3 + torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centers[labels] + torch.randn(n, dim, generator=generator), labels


@pytest.mark.parametrize("center", [True, False])
def test_all_shots_equal_scikit_learns_nearest_centroid(center: bool) -> None:
    train, labels = clusters(80, 0)
    test, truth = clusters(100, 1)
    mean = train.mean(0) if center else torch.zeros(8)

    def unit(x: Tensor) -> np.ndarray:
        array = (x - mean).double().numpy()
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    expected = NearestCentroid().fit(unit(train), labels.numpy()).score(unit(test), truth.numpy())
    assert 0.5 < expected < 1
    found = few_shot_accuracy(train, labels, test, truth, shots=20, draws=3, center=center)
    assert found.mean == pytest.approx(expected)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_one_shot_draws_are_uniform_over_the_images_of_a_class() -> None:
    # One image of five in class 0 sits on the queries, all other images stand aside.
    train = torch.eye(10)
    labels = torch.tensor([0, 1] * 5)
    test, truth = train[[4]], torch.tensor([0])
    found = few_shot_accuracy(train, labels, test, truth, shots=1, draws=4000, center=False)
    # Right where image 4 is drawn (1 in 5); elsewhere all distances tie, and class 0 comes first.
    assert found.mean == 1.0
    flipped = few_shot_accuracy(train, 1 - labels, test, 1 - truth, shots=1, draws=4000, center=False)
    assert flipped.mean == pytest.approx(0.2, abs=0.02)


def test_draws_are_without_replacement_and_of_the_right_class() -> None:
    train = torch.cat([torch.eye(4), -torch.eye(4)])
    labels = torch.tensor([3] * 4 + [9] * 4)
    test = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]])
    found = few_shot_accuracy(train, labels, test, torch.tensor([3, 9]), shots=4, draws=5)
    assert found == 1.0


def test_result_is_a_float_with_its_spread() -> None:
    train, labels = clusters(80, 0)
    test, truth = clusters(100, 1)
    found = few_shot_accuracy(train, labels, test, truth, shots=1, draws=20)
    singles = [few_shot_accuracy(train, labels, test, truth, shots=1, draws=n) * n for n in range(1, 21)]
    each = np.diff([0.0, *singles])
    assert found == pytest.approx(each.mean())
    assert found.std == pytest.approx(each.std(ddof=1), rel=1e-6)
    assert found.ci95 == pytest.approx(1.96 * found.std / 20**0.5)
    assert found.std > 0
    assert json.loads(json.dumps({"one_shot": found})) == {"one_shot": found.mean}
    assert f"{found:.2f}" == f"{found.mean:.2f}"
    for twin in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert isinstance(twin, FewShotResult)
        assert (twin.mean, twin.std, twin.ci95) == (found.mean, found.std, found.ci95)


def test_one_draw_has_no_spread() -> None:
    train, labels = clusters(80, 0)
    found = few_shot_accuracy(train, labels, train, labels, shots=1, draws=1)
    assert (found.std, found.ci95) == (0.0, 0.0)


def test_seed_alone_decides_and_the_global_random_state_is_left() -> None:
    train, labels = clusters(80, 0)
    test, truth = clusters(100, 1)
    state = torch.get_rng_state()
    first = few_shot_accuracy(train, labels, test, truth, shots=1, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert few_shot_accuracy(train, labels, test, truth, shots=1, seed=5) == first
    assert few_shot_accuracy(train, labels, test, truth, shots=1, seed=6) != first


def test_draws_do_not_depend_on_features() -> None:
    train, labels = clusters(80, 0)
    test, truth = clusters(100, 1)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
    plain = few_shot_accuracy(train, labels, test, truth, shots=2)
    turned = few_shot_accuracy(5 * train @ turn, labels, 5 * test @ turn, truth, shots=2)
    assert turned == pytest.approx(plain, abs=1e-3)


def test_a_common_offset_does_not_matter_when_centred() -> None:
    train, labels = clusters(80, 0)
    test, truth = clusters(100, 1)
    plain = few_shot_accuracy(train, labels, test, truth, shots=2)
    moved = few_shot_accuracy(train + 100, labels, test + 100, truth, shots=2)
    assert moved == pytest.approx(plain, abs=1e-3)
    assert plain > few_shot_accuracy(train, labels, test, truth, shots=2, center=False)


def test_unseen_test_classes_are_wrong_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = clusters(80, 0)
    test, truth = clusters(100, 1)
    known = few_shot_accuracy(train, labels, test, truth, shots=5)
    doubled = few_shot_accuracy(train, labels, torch.cat([test, test]), torch.cat([truth, truth + 1000]), shots=5)
    assert doubled == pytest.approx(known / 2)
    monkeypatch.setattr(few_shot, "CHUNK", 28)
    assert few_shot_accuracy(train, labels, test, truth, shots=5) == known


def test_halves_and_diverged_features_are_scored() -> None:
    train, labels = clusters(80, 0)
    test, truth = clusters(100, 1)
    plain = few_shot_accuracy(train, labels, test, truth, shots=5)
    half = few_shot_accuracy(train.half(), labels, test.half(), truth, shots=5)
    assert half == pytest.approx(plain, abs=0.02)
    nothing = few_shot_accuracy(train * torch.nan, labels, test * torch.nan, truth, shots=5)
    assert nothing == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 0}, "shots=0"),
        ({"draws": 0}, "draws=0"),
        ({"shots": 3}, "class 8 has 2 training images"),
        ({"labels_test": torch.arange(3)}, "labels have shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "features_train": torch.ones(5, 2),
        "labels_train": torch.tensor([4, 4, 4, 8, 8]),
        "features_test": torch.ones(2, 2),
        "labels_test": torch.tensor([4, 8]),
        "shots": 1,
    }
    with pytest.raises(ValueError, match=message) as caught:
        few_shot_accuracy(**(good | change))
    assert "\n" not in str(caught.value)
