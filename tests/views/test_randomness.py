"""The counter-based numbers: exact against SplitMix64's published sequence, sane as random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from selfdistill.views.randomness import bits, key, mix, normal, uniform

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
# SplitMix64 seeded with 1234567, as printed by implementations of the paper's reference code in many languages.
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_published_sequence() -> None:
    assert [mix(1234567 + (step + 1) * GOLDEN) for step in range(5)] == PUBLISHED


def test_tensors_agree_with_integers() -> None:
    base, index = key(3, 1, 4), torch.tensor([0, 1, 7, 2**40])
    drawn = bits(base, index, 3)
    for row, sample in enumerate(index.tolist()):
        start = mix(sample * GOLDEN + base)
        expected = [mix(start + (draw + 1) * GOLDEN) for draw in range(3)]
        assert [value & MASK for value in drawn[row].tolist()] == expected


def test_keys_differ() -> None:
    keys = {key(*parts) for parts in [(), (0,), (1,), (0, 1), (1, 0), (0, 0), (0, 0, 1), (-1,), (2**63,)]}
    assert len(keys) == 9


def test_a_number_depends_on_its_sample_and_draw_alone() -> None:
    index = torch.randperm(100)
    everything = uniform(5, torch.arange(100), 8)
    assert torch.equal(uniform(5, index, 3), everything[index, :3])
    assert torch.equal(uniform(5, torch.tensor([42]), 8)[0], everything[42])


@pytest.mark.parametrize(("draw", "law"), [(uniform, stats.uniform), (normal, stats.norm)])
def test_law_and_moments(draw: type, law: stats.rv_continuous) -> None:
    values = draw(key(0, 0, 0), torch.arange(20_000), 5).double()
    assert stats.kstest(values.flatten().numpy(), law.cdf).pvalue > 1e-3
    assert values.mean() == pytest.approx(law.mean(), abs=4 * law.std() / 100_000**0.5)
    assert values.var() == pytest.approx(law.var(), rel=0.02)
    assert values.dtype == torch.float64
    assert draw(0, torch.arange(3), 2).dtype == torch.float32


def test_uniform_stays_below_one() -> None:
    values = uniform(9, torch.arange(200_000), 20)
    assert values.min() >= 0
    assert values.max() < 1


def test_neighbours_are_independent() -> None:
    """Neighbouring samples, draws, crops, epochs and seeds: correlations within noise, joint cells evenly filled."""
    count = 50_000
    index = torch.arange(count)
    first = uniform(key(0, 0, 0), index, 2)
    others = {
        "sample": uniform(key(0, 0, 0), index + 1, 1)[:, 0],
        "draw": first[:, 1],
        "crop": uniform(key(0, 0, 1), index, 1)[:, 0],
        "epoch": uniform(key(0, 1, 0), index, 1)[:, 0],
        "seed": uniform(key(1, 0, 0), index, 1)[:, 0],
    }
    for name, other in others.items():
        correlation = np.corrcoef(first[:, 0].numpy(), other.numpy())[0, 1]
        assert abs(correlation) < 4 / count**0.5, name
        cells = (first[:, 0] * 16).long() * 16 + (other * 16).long()
        assert stats.chisquare(torch.bincount(cells, minlength=256).numpy()).pvalue > 1e-3, name


def test_every_bit_is_fair() -> None:
    drawn = bits(key(7), torch.arange(20_000), 1)[:, 0]
    for bit in range(64):
        share = ((drawn >> bit) & 1).double().mean().item()
        assert share == pytest.approx(0.5, abs=4 * 0.5 / 20_000**0.5), bit
