"""Shapes that are what they are called, wherever they lie, and of which pixels say next to nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfdistill.data import Shapes
from selfdistill.data.shapes import SHAPES
from selfdistill.evaluation.knn import knn_accuracy


def drawn(name: str, side: int = 400) -> tuple[Tensor, float]:
    """Coverage of [-1, 1]² by a shape, and its area."""
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    inside = SHAPES[name](x, y) < 0
    return inside, inside.float().mean().item() * 4


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("disk", math.pi * 0.64),
        ("ring", math.pi * (0.92**2 - 0.52**2)),
        ("square", 1.96),
        ("triangle", 3 * math.sqrt(3) * 0.25),  # around a circle of radius 1/2
        ("cross", 4 * (2 * 0.9 * 0.28) - 4 * 0.28**2),
        ("star", 10 * 0.5 * 0.42 * math.sin(math.pi / 5)),
        ("ell", 0.5 * 1.5 + 1.3 * 0.5 - 0.5 * 0.5),
        ("two bars", 2 * 0.44 * 1.36),
    ],
)
def test_area_of_each_shape(name: str, area: float) -> None:
    assert drawn(name)[1] == pytest.approx(area, rel=0.02)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_lies_within_the_unit_circle(name: str) -> None:
    at = torch.linspace(-1.5, 1.5, 301)
    y, x = torch.meshgrid(at, at, indexing="ij")
    inside = SHAPES[name](x, y) < 0
    assert torch.hypot(x, y)[inside].max() <= 1.001
    assert inside.any()


@pytest.mark.parametrize("name", SHAPES)
def test_edges_are_a_pixel_wide(name: str) -> None:
    """The distance grows by one for each unit of way across the edge, or less at corners."""
    at = torch.linspace(-1.2, 1.2, 481)
    y, x = torch.meshgrid(at, at, indexing="ij")
    down, across = torch.gradient(SHAPES[name](x, y), spacing=(at, at))
    steepness = torch.hypot(across, down)[SHAPES[name](x, y).abs() < 0.05]
    assert steepness.max() <= 1.01
    assert steepness.median() > 0.95


def test_no_two_shapes_are_alike() -> None:
    covers = [drawn(name, 64)[0].flatten() for name in SHAPES]
    for i, one in enumerate(covers):
        for other in covers[:i]:
            assert (one & other).sum() / (one | other).sum() < 0.85


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    few, many = Shapes(train=20).split("train"), Shapes(train=1100).split("train")
    assert torch.equal(few.images, many.images[:20])
    assert torch.equal(few.labels, many.labels[:20])


def test_splits_and_seeds_differ_and_a_seed_repeats() -> None:
    source = Shapes(train=20, validation=20, test=20)
    train, test = source.split("train").images, source.split("test").images
    assert torch.equal(train, Shapes(train=20).split("train").images)
    assert not torch.equal(train, test)
    assert not torch.equal(train, Shapes(train=20, seed=1).split("train").images)


def test_images_of_any_size_are_of_the_same_shapes() -> None:
    small = Shapes(size=16, train=10, difficulty=0.0).split("train").images.float()
    large = Shapes(size=64, train=10, difficulty=0.0).split("train").images.float()
    pooled = torch.nn.functional.avg_pool2d(large, 4)
    assert (pooled - small).abs().mean() < 3  # of 255: both are antialiased


def test_classes_are_even_and_the_statistics_those_that_are_stated() -> None:
    train = Shapes(train=1000).split("train")
    assert torch.bincount(train.labels).tolist() == [100] * len(SHAPES)
    assert train.images.shape == (1000, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    values = train.images.float() / 255
    assert (values.mean((0, 2, 3)) - torch.tensor(Shapes.mean)).abs().max() < 0.03
    assert (values.std((0, 2, 3)) - torch.tensor(Shapes.std)).abs().max() < 0.03


def test_pixels_say_little() -> None:
    source = Shapes()
    train, test = source.split("train"), source.split("test")

    def pixels(images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255 - 0.5

    found = knn_accuracy(pixels(train.images), train.labels, pixels(test.images), test.labels, k=20, temperature=0.07)
    assert found < 0.2


def test_difficulty_hides_the_shape() -> None:
    """The same scenes: neighbouring pixels differ more, by texture and noise."""

    def roughness(difficulty: float) -> float:
        images = Shapes(train=200, difficulty=difficulty).split("train").images.float()
        return (images[..., 1:] - images[..., :-1]).abs().median().item()

    assert roughness(0.0) < roughness(0.4) < roughness(1.0)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"size": 4}, "size: 4 given, allowed is 8 or more"),
        ({"train": 3}, "train: 3 given, allowed is 10 or more"),
        ({"difficulty": 1.5}, "difficulty: 1.5 given, allowed is 0 to 1"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Shapes(**setting)  # type: ignore[arg-type]
