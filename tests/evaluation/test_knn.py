import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import selfdistill.evaluation.knn as knn
from selfdistill.evaluation import knn_accuracy, knn_predict, knn_sweep


def clusters(n: int, classes: int = 5, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    return centers[labels] + 1.2 * torch.randn(n, dim, generator=generator), labels


def slow_predict(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> list[int]:
    """DINO's vote, one query and one neighbour at a time, in Python floats."""
    answers = []
    for query in queries.double().tolist():
        scored = []
        for row, label in zip(bank.double().tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            scored.append((dot / math.hypot(*query) / math.hypot(*row), label))
        votes: dict[int, float] = {}
        for similarity, label in sorted(scored, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        answers.append(max(sorted(votes), key=lambda label: votes[label]))
    return answers


@pytest.mark.parametrize("k", [1, 7, 20, 60])
@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
def test_prediction_equals_the_slow_vote(k: int, temperature: float) -> None:
    bank, labels = clusters(60)
    queries, _ = clusters(40, seed=1)
    predicted = knn_predict(bank, labels, queries, k=k, temperature=temperature)
    assert predicted.tolist() == slow_predict(bank, labels, queries, k, temperature)


@pytest.mark.parametrize("k", [5, 20])
def test_accuracy_equals_scikit_learn_with_the_same_weights(k: int) -> None:
    bank, labels = clusters(400)
    queries, truth = clusters(200, seed=1)

    def weights(cosine_distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - cosine_distance) / 0.07)

    reference = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    expected = reference.fit(bank.numpy(), labels.numpy()).score(queries.numpy(), truth.numpy())
    assert 0.5 < expected < 1
    assert knn_accuracy(bank, labels, queries, truth, k=k) == pytest.approx(expected)


def test_weights_decide_not_the_count() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, query = torch.tensor([7, 2, 2]), torch.tensor([[1.0, 0.4]])
    assert knn_predict(bank, labels, query, k=3, temperature=0.07).tolist() == [7]
    assert knn_predict(bank, labels, query, k=3, temperature=100.0).tolist() == [2]


def test_a_tiny_temperature_stays_finite() -> None:
    bank, labels = clusters(50)
    assert knn_accuracy(bank, labels, bank, labels, k=5, temperature=1e-4) == 1.0


def test_scale_of_features_does_not_matter() -> None:
    bank, labels = clusters(60)
    queries, _ = clusters(40, seed=1)
    scales = torch.logspace(-20, 15, 60)[:, None]
    assert torch.equal(knn_predict(bank * scales, labels, queries), knn_predict(bank, labels, queries))


def test_k_beyond_the_bank_is_the_whole_bank() -> None:
    bank, labels = clusters(12)
    queries, truth = clusters(30, seed=1)
    assert knn_accuracy(bank, labels, queries, truth, k=500) == knn_accuracy(bank, labels, queries, truth, k=12)


def test_classes_missing_on_either_side_and_labels_of_any_range() -> None:
    bank = torch.eye(3)
    bank_labels = torch.tensor([10**12, 0, 5])
    queries = torch.eye(3)[[0, 0, 1, 1]]
    truth = torch.tensor([10**12, 3, 0, 777])
    assert knn_predict(bank, bank_labels, queries, k=1).tolist() == [10**12, 10**12, 0, 0]
    assert knn_accuracy(bank, bank_labels, queries, truth, k=1) == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_vote_in_float32_or_better(dtype: torch.dtype) -> None:
    bank, labels = clusters(200)
    queries, _ = clusters(100, seed=1)
    bank, queries = bank.to(dtype), queries.to(dtype)
    expected = knn_predict(bank.double(), labels, queries.double())
    assert torch.equal(knn_predict(bank, labels.to(torch.uint8), queries), expected)


def test_autocast_changes_nothing() -> None:
    bank, labels = clusters(300)
    queries, _ = clusters(200, seed=1)
    expected = knn_predict(bank, labels, queries)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn_predict(bank, labels, queries), expected)


def test_with_and_without_one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels = clusters(300)
    queries, _ = clusters(200, seed=1)
    expected = knn_predict(bank, labels, queries)
    with torch.inference_mode():
        assert torch.equal(knn_predict(bank + 0, labels, queries + 0), expected)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert torch.equal(knn_predict(bank, labels, queries), expected)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels = clusters(60)
    queries, _ = clusters(41, seed=1)
    expected = knn_predict(bank, labels, queries)
    monkeypatch.setattr(knn, "CHUNK", 7 * 60)
    assert torch.equal(knn_predict(bank, labels, queries), expected)
    monkeypatch.setattr(knn, "CHUNK", 1)
    assert torch.equal(knn_predict(bank, labels, queries), expected)


def test_no_temporary_of_queries_by_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels = clusters(100)
    queries, _ = clusters(90, seed=1)
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    monkeypatch.setattr(knn, "CHUNK", 1000)
    with Watch():
        knn_predict(bank, labels, queries, k=5)
    # The features themselves (100 × 16) are the largest tensors left.
    assert max(sizes) == bank.numel()


def test_rows_that_are_not_finite_or_zero_have_no_direction() -> None:
    bank, labels = clusters(60)
    queries, _ = clusters(20, seed=1)
    spoiled = torch.cat([bank, torch.full((2, 16), float("nan")), torch.full((2, 16), float("inf"))])
    spoiled_labels = torch.cat([labels, torch.full((4,), 4)])
    assert torch.equal(knn_predict(spoiled, spoiled_labels, queries, k=5), knn_predict(bank, labels, queries, k=5))
    constant = torch.zeros(10, 16)
    assert 0 <= knn_accuracy(constant, labels[:10], torch.full((5, 16), torch.nan), labels[:5]) <= 1


def test_a_sweep_equals_single_calls() -> None:
    bank, labels = clusters(60)
    queries, truth = clusters(80, seed=1)
    swept = knn_sweep(bank, labels, queries, truth, ks=(50, 1, 100), temperatures=(0.07, 5.0))
    assert len(swept) == 6
    for (k, temperature), accuracy in swept.items():
        assert accuracy == knn_accuracy(bank, labels, queries, truth, k=k, temperature=temperature)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 12), st.integers(0, 50))
def test_predictions_are_always_labels_of_the_bank(bank_size: int, dim: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randint(-1, 2, (bank_size, dim), generator=generator).float()
    labels = torch.randint(1000, (bank_size,), generator=generator)
    predicted = knn_predict(bank, labels, bank, k=k)
    assert set(predicted.tolist()) <= set(labels.tolist())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, "k="),
        ({"temperature": 0.0}, ValueError, "temperature="),
        ({"temperature": float("nan")}, ValueError, "temperature="),
        ({"bank": torch.ones(4, 2, 2)}, ValueError, r"bank must be \[N, D\]"),
        ({"bank": torch.ones(0, 2)}, ValueError, r"bank must be \[N, D\]"),
        ({"queries": torch.ones(3, 5)}, ValueError, "5 dimensions"),
        ({"bank_labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "labels have shape"),
        ({"bank_labels": torch.zeros(4)}, TypeError, "not integers"),
        ({"query_labels": torch.tensor([0, -1, 0])}, ValueError, "negative"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {
        "bank": torch.ones(4, 2),
        "bank_labels": torch.arange(4),
        "queries": torch.ones(3, 2),
        "query_labels": torch.arange(3),
    }
    with pytest.raises(error, match=message) as caught:
        knn_accuracy(**(good | change))
    assert "\n" not in str(caught.value)
