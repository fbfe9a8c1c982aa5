from __future__ import annotations

import pickle

import pytest
import torch
from torch import Generator

from selfdistill.views.masks import BlockMask, InverseBlockMask, MultiBlockMask, RandomMask

TINY = [(1, 2), (2, 2), (4, 4), (3, 7)]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", [*TINY, (14, 14), [7, 7]])
def test_no_mask_is_full_and_no_masked_image_empty(grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    for make in (
        RandomMask(grid, 0.15),
        BlockMask(grid, probability=1.0),
        InverseBlockMask(grid, block=1),
    ):
        mask = make(32, seeded())["mask"]
        assert mask.shape == (32, patches)
        assert mask.any(1).all()
        assert not mask.all(1).any()
    parts = MultiBlockMask(grid)(32, seeded())
    assert set(parts) == {"context", "targets"}
    assert parts["context"].shape[1] >= 1
    assert parts["targets"].shape[:2] == (32, 4)


def test_dinov2_masks_half_of_the_images_over_the_whole_range() -> None:
    counts = BlockMask((14, 14))(128, seeded())["mask"].sum(1)
    masked = counts[counts > 0].sort().values
    assert len(masked) == 64
    expected = torch.linspace(0.1, 0.5, 65) * 196
    assert (masked >= expected[:-1] - 0.51).all()
    assert (masked <= expected[1:] + 0.51).all()


def test_ibot_masks_each_image_by_chance() -> None:
    make = BlockMask((14, 14), stratified=False)
    generator = seeded()
    counts = torch.cat([make(64, generator)["mask"].sum(1) for _ in range(40)]).double()
    masked = counts[counts > 0]
    assert len(masked) / len(counts) == pytest.approx(0.5, abs=0.03)
    assert 19 <= masked.min() <= 21
    assert 96 <= masked.max() <= 98
    assert masked.mean().item() / 196 == pytest.approx(0.3, abs=0.01)


def test_data2vec_masks_120_of_196() -> None:
    make = BlockMask((14, 14), ratio_range=(120 / 196, 120 / 196), probability=1, min_block=16)
    assert (make(64, seeded())["mask"].sum(1) == 120).all()


def test_data2vec2_shows_39_of_196() -> None:
    assert ((~InverseBlockMask((14, 14))(64, seeded())["mask"]).sum(1) == 39).all()


def test_one_image_is_masked_even_alone() -> None:
    for seed in range(50):
        assert BlockMask((4, 4))(1, seeded(seed))["mask"].any()


def test_min_masked() -> None:
    counts = BlockMask((4, 4), ratio_range=(0.01, 0.2), probability=1.0, min_masked=3)(64, seeded())["mask"].sum(1)
    assert counts.min() == 3


@pytest.mark.parametrize(
    "make",
    [RandomMask((14, 14), 0.5), BlockMask((14, 14)), InverseBlockMask((14, 14)), MultiBlockMask((14, 14))],
    ids=lambda make: type(make).__name__,
)
def test_seeds_and_pickles(make) -> None:
    first = make(16, seeded(1))
    again = pickle.loads(pickle.dumps(make))(16, seeded(1))
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        assert torch.equal(again[name], tensor)
    other = make(16, seeded(2))
    assert any(first[name].shape != other[name].shape or not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BlockMask((1, 1)), "grid: got"),
        (lambda: RandomMask((4, 4), 1.5), r"ratio: got 1.5, allowed is a number in \[0, 1\]"),
        (
            lambda: BlockMask((4, 4), ratio_range=(0.5, 0.1)),
            r"ratio_range: got \(0.5, 0.1\), allowed are \(low, high\)",
        ),
        (lambda: BlockMask((4, 4), ratio_range=(0.5,)), "ratio_range: got"),
        (lambda: BlockMask((4, 4), probability=-1), "probability: got -1"),
        (lambda: BlockMask((4, 4), aspect=(0, 1)), "aspect: got"),
        (lambda: InverseBlockMask((4, 4), block=5), r"block: got 5, allowed is a number in \[1, 4\]"),
        (lambda: MultiBlockMask((4, 4), targets=0), "targets: got 0"),
        (lambda: MultiBlockMask((4, 4), target_scale=(0.2, 1.5)), "target_scale: got"),
    ],
)
def test_bad_settings(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
