"""A share of the labels: drawn class by class, repeated, and fitted as the whole would be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfdistill.evaluation import linear_probe
from selfdistill.evaluation.label_fraction import draw_share, label_fraction_accuracy


def features(seed: int, count: int = 120) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return torch.randn(count, 6, generator=generator) + 1.2 * y[:, None], y


def test_draws_are_shares_of_each_class() -> None:
    labels = torch.tensor([0] * 40 + [1] * 13 + [7] * 2)
    rows = draw_share(labels, 0.1, torch.Generator().manual_seed(0))
    assert len(rows.unique()) == len(rows)
    assert {int(k): int((labels[rows] == k).sum()) for k in (0, 1, 7)} == {0: 4, 1: 1, 7: 1}
    again = draw_share(labels, 0.1, torch.Generator().manual_seed(1))
    assert not torch.equal(rows, again)


def test_all_labels_are_the_linear_probe() -> None:
    train, test = features(0), features(1)
    whole = label_fraction_accuracy(*train, *test, fraction=1.0, draws=2, l2=0.01)
    assert whole.mean == pytest.approx(linear_probe(*train, *test, l2=0.01), abs=1e-12)
    assert whole.std == 0


def test_repeats_have_a_spread_and_do_not_touch_the_random_state() -> None:
    train, test = features(0), features(1)
    state = torch.get_rng_state()
    few = label_fraction_accuracy(*train, *test, fraction=0.03, draws=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert few == label_fraction_accuracy(*train, *test, fraction=0.03, draws=6)
    assert few.std > 0
    assert few.ci95 == pytest.approx(1.96 * few.std / 6**0.5)
    assert few < label_fraction_accuracy(*train, *test, fraction=0.5, draws=2)


@pytest.mark.parametrize("settings", [{"fraction": 0.0}, {"fraction": 1.1}, {"fraction": 0.5, "draws": 0}])
def test_refusals(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fraction="):
        label_fraction_accuracy(*features(0), *features(1), **settings)  # type: ignore[arg-type]
