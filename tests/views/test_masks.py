from __future__ import annotations

import pickle

import pytest
import torch
from torch import Generator

from selfdistill.views.masks import (
    BlockMask,
    InverseBlockMask,
    MultiBlockMask,
    RandomMask,
    draw_masks,
    patch_grid,
)

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


MAKERS = [RandomMask((4, 4), 0.4), BlockMask((4, 4)), InverseBlockMask((4, 4)), MultiBlockMask((4, 4))]
INDEX = torch.tensor([7, 3, 11, 5])


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: type(make).__name__)
def test_masks_are_a_function_of_seed_epoch_and_samples(make) -> None:
    def drawn(index: torch.Tensor = INDEX, seed: int = 1, epoch: int = 2) -> str:
        masks = draw_masks(make, index, 2, seed=seed, epoch=epoch)
        return str({name: tensor.tolist() for name, tensor in masks.items()})

    before = torch.random.get_rng_state()
    first = drawn()
    assert drawn() == first
    assert drawn(seed=2) != first
    assert drawn(epoch=3) != first
    assert drawn(index=INDEX + 1) != first
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"


@pytest.mark.parametrize("make", MAKERS[:3], ids=lambda make: type(make).__name__)
def test_masked_tokens_of_every_crop(make) -> None:
    masks = draw_masks(make, torch.arange(6), 2, seed=0, epoch=0)
    mask = masks["mask"]
    assert mask.shape == (2, 6, 16)
    assert not torch.equal(mask[0], mask[1])
    positions, weights = [], []
    for crop in range(2):
        for image in range(6):
            for patch in range(16):
                if mask[crop, image, patch]:
                    positions.append((crop * 6 + image) * 16 + patch)
                    weights.append(1 / int(mask[crop, image].sum()))
    assert masks["masked"].tolist() == positions
    assert masks["masked_weight"].tolist() == pytest.approx(weights)
    if "keep" in masks:
        rows = mask.flatten(0, 1)
        assert [row.tolist() for row in masks["keep"]] == [(~row).nonzero()[:, 0].tolist() for row in rows]


def test_nothing_masked_leaves_one_token_without_weight() -> None:
    masks = draw_masks(BlockMask((4, 4), probability=0.0), torch.arange(3), 1, seed=0, epoch=0)
    assert not masks["mask"].any()
    assert masks["masked"].tolist() == [0]
    assert masks["masked_weight"].tolist() == [0.0]


def test_patch_grid() -> None:
    assert patch_grid(224, 16) == (14, 14)
    with pytest.raises(ValueError, match="a crop of 8 pixels is no multiple of a patch of 3; change data.image.patch"):
        patch_grid(8, 3)
