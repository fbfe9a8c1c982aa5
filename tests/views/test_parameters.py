"""Drawn parameters: torchvision's distribution of crops, the asked-for rates and ranges of everything else."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from selfdistill.views import Augment
from selfdistill.views.parameters import Parameters, draw

COUNT = 4000


def drawn(augment: Augment, height: int = 40, width: int = 30, **which: int) -> Parameters:
    index = torch.arange(COUNT)
    sides = torch.full((COUNT,), height), torch.full((COUNT,), width)
    return draw(augment, *sides, index, **({"seed": 0, "epoch": 0, "crop": 0} | which))


@pytest.mark.parametrize("shape", [(40, 30), (64, 64), (10, 60), (60, 10)])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    box = drawn(Augment(crop_scale=scale, crop_ratio=ratio), *shape).box.double()
    assert (box[:, :2] >= 0).all()
    assert (box[:, 0] + box[:, 2] <= shape[0]).all()
    assert (box[:, 1] + box[:, 3] <= shape[1]).all()
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.zeros(1, *shape)
    made = [theirs.make_params([image]) for _ in range(COUNT)]
    reference = torch.tensor([[p[k] for k in ("top", "left", "height", "width")] for p in made]).double()
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(box[:, column], reference[:, column]).pvalue > 1e-3, name
    assert stats.ks_2samp(box[:, 2] * box[:, 3], reference[:, 2] * reference[:, 3]).pvalue > 1e-3
    assert stats.ks_2samp(box[:, 2] / box[:, 3], reference[:, 2] / reference[:, 3]).pvalue > 1e-3


def test_rates() -> None:
    asked = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.1, "solarize": 0.2}
    got = drawn(Augment(**asked))
    for name, rate in asked.items():
        assert getattr(got, name).double().mean() == pytest.approx(rate, abs=4 * 0.5 / COUNT**0.5), name
    for name in asked:
        assert not getattr(drawn(Augment()), name).any()
        assert getattr(drawn(Augment(**{name: 1.0})), name).all()


def test_ranges() -> None:
    augment = Augment(
        rotate=20, shift=0.1, zoom=(0.8, 1.2), shear=10, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1
    )
    got = drawn(augment)
    ranges = {
        "angle": (got.angle, -20, 20),
        "right": (got.shift[:, 0], -0.1, 0.1),
        "down": (got.shift[:, 1], -0.1, 0.1),
        "zoom": (got.zoom, 0.8, 1.2),
        "shear": (got.shear, -10, 10),
        "brightness": (got.factors[:, 0], 0.6, 1.4),
        "contrast": (got.factors[:, 1], 0.7, 1.3),
        "saturation": (got.factors[:, 2], 0.8, 1.2),
        "hue": (got.factors[:, 3], -0.1, 0.1),
        "sigma": (got.sigma, 0.1, 2.0),
    }
    for name, (values, low, high) in ranges.items():
        assert stats.kstest(values.double().numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
    columns = torch.stack([values.double() for values, _, _ in ranges.values()])
    off_diagonal = torch.corrcoef(columns) - torch.eye(len(columns))
    assert off_diagonal.abs().max() < 4.5 / COUNT**0.5


def test_every_order_of_the_colour_operations() -> None:
    order = drawn(Augment(jitter=1.0)).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(COUNT, 4))
    codes = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_whole_image_without_a_crop() -> None:
    assert torch.equal(drawn(Augment()).box, torch.tensor([0, 0, 40, 30]).expand(COUNT, 4))


def test_the_key_and_nothing_else() -> None:
    augment = Augment(rotate=10, noise=1.0)
    same, other = drawn(augment), [drawn(augment, **which) for which in ({"seed": 1}, {"epoch": 1}, {"crop": 1})]
    assert torch.equal(drawn(augment).angle, same.angle)
    shape = torch.Size([COUNT, 1, 2, 2])
    noise = same.noise(shape, torch.device("cpu"))
    for changed in other:
        assert (changed.angle != same.angle).double().mean() > 0.99
        assert (
            abs(torch.corrcoef(torch.stack([noise.flatten(), changed.noise(shape, noise.device).flatten()]))[0, 1])
            < 0.04
        )
    assert torch.equal(same.only(7).noise(torch.Size([1, 1, 2, 2]), noise.device), noise[7:8])
