"""Procedural labelled images: one shape an image, everything else about it random."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from selfdistill.data.images import TensorImages
from selfdistill.data.sources import SPLITS, Split
from selfdistill.views.randomness import key, normal, uniform

# Images rendered at a time: some 100 MB of intermediate values at 32 pixels.
_PIXELS = 2**20
_GRATINGS = 3
_DRAWS = 4 + 2 * 3 + 2 * _GRATINGS * 4


class Shapes:
    """Images of ten shapes (`SHAPES`), rendered when they are asked for; no download.

    Position, size, rotation, both colours, the background's texture and the noise are random and say nothing about the
    class, so that neighbours by pixels are hardly better than chance. Image number i of a split depends on the seed,
    the split and i alone: a larger set begins with the smaller one. Classes take turns.

    Args:
        size: side in pixels.
        train: number of training images.
        validation: likewise.
        test: likewise.
        difficulty: in [0, 1]: how strong texture and noise are, how faint the shape may be and how small it may get.
        seed: of the images; a run's own seed does not change them.

    Raises:
        ValueError: a setting out of range.
    """

    channels = 3
    mean = (0.5, 0.5, 0.5)
    std = (0.3, 0.3, 0.3)

    def __init__(
        self,
        size: int = 32,
        train: int = 5000,
        validation: int = 1000,
        test: int = 1000,
        difficulty: float = 0.2,
        seed: int = 0,
    ) -> None:
        numbers = {"train": train, "validation": validation, "test": test}
        for name, value, least in (("size", size, 8), *((split, n, len(SHAPES)) for split, n in numbers.items())):
            if value < least:
                raise ValueError(f"data.source.{name}: {value} given, allowed is {least} or more")
        if not 0 <= difficulty <= 1:
            raise ValueError(f"data.source.difficulty: {difficulty} given, allowed is 0 to 1")
        self.size = size
        self.numbers = numbers
        self.difficulty = difficulty
        self.seed = seed

    def split(self, name: Split) -> TensorImages:
        """The split's images, uint8 [n, 3, size, size], and their classes: positions in `SHAPES`."""
        index = torch.arange(self.numbers[name])
        labels = index % len(SHAPES)
        base = key(self.seed, SPLITS.index(name), 0)
        parts = max(_PIXELS // self.size**2, 1)
        images = [
            _render(some, classes, base, self.size, self.difficulty)
            for some, classes in zip(index.split(parts), labels.split(parts), strict=True)
        ]
        return TensorImages(torch.cat(images), labels)


def _render(index: Tensor, labels: Tensor, base: int, size: int, difficulty: float) -> Tensor:
    """uint8 [n, 3, size, size] of the images number `index`."""
    u = uniform(base, index, _DRAWS)
    place, rest = u[:, :4], u[:, 4:]
    colours, waves = rest[:, :6].view(-1, 2, 3), rest[:, 6:].view(-1, 2, _GRATINGS, 4)
    at = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(at, at, indexing="ij")

    radius = 0.62 - (0.1 + 0.25 * difficulty) * place[:, 0]
    free = 0.9 * (1 - radius)
    angle = 2 * math.pi * place[:, 1]
    cos, sin = (angle.cos() / radius)[:, None, None], (angle.sin() / radius)[:, None, None]
    x0, y0 = (((2 * place[:, i] - 1) * free)[:, None, None] for i in (2, 3))
    across, down = cos * (x - x0) + sin * (y - y0), -sin * (x - x0) + cos * (y - y0)
    distance = torch.empty_like(across)
    for label, shape in enumerate(SHAPES.values()):
        own = labels == label
        distance[own] = shape(across[own], down[own])
    # from one pixel inside the edge to one outside
    cover = (0.5 - distance * radius[:, None, None] * (size / 2)).clamp(0, 1)[:, None]

    ground, figure = _apart(colours[:, 0], colours[:, 1], 0.9 - 0.5 * difficulty)
    ground_texture, figure_texture = (_gratings(waves[:, i], x, y)[:, None] for i in (0, 1))
    strength = 0.5 * difficulty
    images = torch.lerp(
        ground[..., None, None] + strength * ground_texture, figure[..., None, None] + strength * figure_texture, cover
    )
    noise = normal(key(base, 1, 0), index, 3 * size * size).view(-1, 3, size, size)
    return (images + 0.15 * difficulty * noise).clamp(0, 1).mul(255).round().to(torch.uint8)


def _apart(one: Tensor, other: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """The colours [n, 3], moved along the line between them where they are nearer than `least`, and cut to [0, 1]."""
    way = other - one
    length = way.norm(dim=1, keepdim=True).clamp_min(1e-6)
    push = way / length * ((least - length).clamp_min(0) / 2)
    return (one - push).clamp(0, 1), (other + push).clamp(0, 1)


def _gratings(waves: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[n, h, w]: the mean of sinusoidal gratings of random direction, frequency, phase and weight, within [-1, 1].

    Args:
        waves: [n, gratings, 4], uniform in [0, 1].
        x, y: [h, w], in [-1, 1].
    """
    direction, frequency, phase, weight = (waves[..., i, None, None] for i in range(4))
    turn, cycles = 2 * math.pi * direction, 1 + 5 * frequency
    wave = torch.sin(math.pi * cycles * (turn.cos() * x + turn.sin() * y) + 2 * math.pi * phase)
    return (weight * wave).mean(1)


# Signed distances (or bounds of them, below half a pixel wrong at the edge) from shapes within the unit circle,
# negative inside. x to the right, y down.


def _disk(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.8


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72).abs() - 0.2


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.45, y))


def _half_disk(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y - 0.4) - 0.9, y - 0.4)


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.7, 0.7)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    slope = math.sqrt(3) / 2 * x.abs() - y / 2
    return torch.maximum(slope, y) - 0.5


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: the nearest spike's edge, by symmetry turned upwards."""
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2
    length = torch.hypot(x, y)
    along, aside = length * angle.cos(), length * angle.sin().abs()
    # from the tip at 1 to the notch at .42
    notch_x, notch_y = 0.42 * math.sin(sector / 2), 0.42 * math.cos(sector / 2)
    edge = math.hypot(notch_x, 1 - notch_y)
    return ((along - 1) * notch_x + aside * (1 - notch_y)) / edge


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.9, 0.28), _box(x, y, 0.28, 0.9))


def _ell(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x + 0.4, y, 0.25, 0.75), _box(x, y - 0.5, 0.65, 0.25))


def _bars(x: Tensor, y: Tensor) -> Tensor:
    return _box(x.abs() - 0.5, y, 0.22, 0.68)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disk": _disk,
    "ring": _ring,
    "crescent": _crescent,
    "half disk": _half_disk,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ell": _ell,
    "two bars": _bars,
}
