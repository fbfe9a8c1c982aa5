"""Views cut into micro-batches, and the outputs of these joined, on a network as small as they come."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from selfdistill.views import Views
from selfdistill.views.masks import BlockMask, MultiBlockMask, RandomMask, draw_masks
from selfdistill.views.micro_batches import in_micro_batches, join, micro_batches

BOTH = frozenset({"teacher", "student"})
GRID = (4, 4)


def views(images: int = 7, crops: int = 2, make: Any = None) -> Views:
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(images)
    return Views(
        [torch.randn(images, 1, 4, 4, generator=generator) for _ in range(crops)],
        (BOTH,) * crops,
        {} if make is None else draw_masks(make, index, crops, seed=0, epoch=0),
        labels=index % 3,
        index=index,
    )


@pytest.mark.parametrize(
    "make", [None, BlockMask(GRID, probability=1.0), RandomMask(GRID, 0.2), MultiBlockMask(GRID, min_keep=2)]
)
def test_a_micro_batch_is_what_a_loader_would_give(make: Any) -> None:
    whole = views(make=make)
    parts = micro_batches(whole, 3)
    assert [part.views.batch_size for part in parts] == [3, 3, 1]
    for start, part in zip((0, 3, 6), parts, strict=True):
        mine = slice(start, start + part.views.batch_size)
        for crop, own in zip(whole.crops, part.views.crops, strict=True):
            assert torch.equal(own, crop[mine])
        assert torch.equal(part.views.index, whole.index[mine])  # type: ignore[index,arg-type]
        assert torch.equal(part.views.labels, whole.labels[mine])  # type: ignore[index,arg-type]
        assert part.views.masks.keys() == whole.masks.keys()
        for name in ("keep", "context", "targets"):
            if name in whole.masks:
                expected = whole.masks[name].unflatten(0, (2, 7))[:, mine].flatten(0, 1)
                assert torch.equal(part.views.masks[name], expected)
        if "mask" in whole.masks:
            mask = part.views.masks["mask"]
            assert torch.equal(mask, whole.masks["mask"][:, mine])
            assert torch.equal(part.views.masks["masked"], mask.flatten().nonzero()[:, 0])
            counts = mask.sum(-1, keepdim=True).expand_as(mask)[mask]
            torch.testing.assert_close(part.views.masks["masked_weight"], 1 / counts)


def test_a_micro_batch_without_a_masked_patch_has_one_that_counts_nothing() -> None:
    whole = views()
    mask = torch.zeros(2, 7, 16, dtype=torch.bool)
    mask[1, 5, 3] = mask[0, 4, 2] = True
    whole.masks = {
        "mask": mask,
        "masked": mask.flatten().nonzero()[:, 0],
        "masked_weight": torch.ones(2),
    }
    parts = micro_batches(whole, 2)
    assert [part.views.masks["masked_weight"].tolist() for part in parts] == [[0], [0], [1, 1], [0]]
    values = [torch.arange(len(part.views.masks["masked"])) + 10.0 * k for k, part in enumerate(parts)]
    # the third holds both; by crop, then image
    assert join(values, parts, "masked").tolist() == [20, 21]


@dataclass
class Answer:
    crops: Tensor
    images: Tensor
    masked: Tensor
    several: tuple[Tensor, ...]
    pairs: tuple[tuple[int, int], ...]

    layouts: ClassVar[dict[str, str]] = {"images": "images", "masked": "masked"}


def encode(given: Views) -> Answer:
    stacked = torch.stack(given.crops)
    tokens = stacked.flatten(3).flatten(0, 2)
    masked = tokens.flatten().index_select(0, given.mask("masked"))
    return Answer(stacked.sum((2, 3)), stacked.flatten(0, 1).sum((1, 2)), masked, (stacked, 2 * stacked), given.pairs)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("grad", [False, True])
def test_outputs_are_those_of_the_whole(size: int, grad: bool) -> None:
    whole = views(make=BlockMask(GRID))
    with torch.set_grad_enabled(grad):
        found, wanted = in_micro_batches(encode, whole, size), encode(whole)
    for name in ("crops", "images", "masked"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0)
    assert found.pairs == wanted.pairs
    for a, b in zip(found.several, wanted.several, strict=True):
        assert torch.equal(a, b)


def test_what_lies_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 2\] of 3 images given, which does not lie as 'crops' says; declare"):
        in_micro_batches(lambda part: part.crops[0].flatten(1)[:, :2], views(), 3)
    with pytest.raises(ValueError, match="micro_batch_size: 0 given, allowed is 1 or more"):
        micro_batches(views(), 0)


class Alive:
    """Counts activations of one layer that are alive at once."""

    def __init__(self, layer: nn.Module) -> None:
        self.now: list[Any] = []
        self.most = 0
        layer.register_forward_hook(self._made)

    def _made(self, module: nn.Module, given: Any, made: Tensor) -> None:
        self.now.append(weakref.ref(made))
        self.most = max(self.most, self.count)

    @property
    def count(self) -> int:
        return sum(reference() is not None for reference in self.now)


def test_activations_of_one_micro_batch_are_alive_at_a_time_and_random_numbers_return() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    whole = views(6, crops=1)

    def run(part: Views) -> Tensor:
        return network(part.crops[0])[None]

    def loss(embeddings: Tensor) -> Tensor:
        """Couples all images."""
        return torch.logsumexp(embeddings[0] @ embeddings[0].T, 1).sum()

    torch.manual_seed(0)
    reference = torch.cat([run(part.views) for part in micro_batches(whole, 2)], dim=1)
    after = torch.get_rng_state()
    wanted = torch.autograd.grad(loss(reference), list(network.parameters()))
    del reference

    alive = Alive(network[2])
    torch.manual_seed(0)
    embeddings = in_micro_batches(run, whole, 2)
    assert torch.equal(torch.get_rng_state(), after)
    assert alive.count == 0
    loss(embeddings).backward()
    assert alive.most == 1
    assert len(alive.now) == 2 * 3
    assert torch.equal(torch.get_rng_state(), after)
    for parameter, gradient in zip(network.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
