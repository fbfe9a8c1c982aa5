"""One figure for any number of ranks: every sample counts once, in the data set's order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from selfdistill.evaluation import gather
from selfdistill.evaluation.features import extract_features


def dataset(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(count))[:, None].expand(count, 3), torch.arange(count) % 4)


@pytest.mark.parametrize(("count", "world"), [(10, 4), (8, 4), (5, 4), (7, 2)])
def test_what_a_distributed_sampler_repeats_is_counted_once(
    count: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers = [DistributedSampler(range(count), world, r, shuffle=False) for r in range(world)]  # type: ignore[arg-type]
    rows = [torch.tensor(list(sampler)) for sampler in samplers]
    monkeypatch.setattr(gather, "world_size", lambda: world)
    monkeypatch.setattr(gather, "all_gather_cat", lambda mine: torch.cat(rows))
    for mine, sampler in zip(rows, samplers, strict=True):
        assert gather.unpadded(mine, sampler).tolist() == list(range(count))


def test_ranks_that_saw_everything_gather_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "world_size", lambda: 2)
    monkeypatch.setattr(gather, "all_gather_cat", lambda mine: pytest.fail("gathered"))
    rows = torch.arange(6)
    assert gather.unpadded(rows, None) is rows
    assert gather.unpadded(rows, DistributedSampler(range(6), 1, 0)) is rows  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "world"), [(10, 4), (8, 4), (5, 4), (7, 2), (3, 4)])
def test_shared_extraction_is_that_of_one_rank(count: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(dataset(count), batch_size=2)
    expected = extract_features(lambda x: 2 * x, loader, "cpu")
    monkeypatch.setattr(gather, "world_size", lambda: world)
    shares: list[list[Tensor]] = []
    embedded: list[int] = []

    def embed(x: Tensor) -> Tensor:
        embedded.append(len(x))
        return 2 * x

    def record(mine: Tensor) -> Tensor:
        shares[-1].append(mine)
        return mine.new_zeros(world * len(mine), *mine.shape[1:])

    for r in range(world):  # once to learn what each rank would send …
        shares.append([])
        monkeypatch.setattr(gather, "rank", lambda r=r: r)
        monkeypatch.setattr(gather, "all_gather_cat", record)
        gather.extract_over_ranks(embed, loader, "cpu")
    if count >= world:
        # … all embed equally many, and nobody what another one does but to that end …
        assert sum(embedded) == -(-count // world) * world
        assert len({len(share[0]) for share in shares}) == 1
    for r in range(world):  # … and once with it
        sent = iter([torch.cat(column) for column in zip(*shares, strict=True)])
        monkeypatch.setattr(gather, "rank", lambda r=r: r)
        monkeypatch.setattr(gather, "all_gather_cat", lambda mine, sent=sent: next(sent))
        features, labels = gather.extract_over_ranks(embed, loader, "cpu")
        assert torch.equal(features, expected[0])
        assert torch.equal(labels, expected[1])


def test_a_loader_with_an_order_of_its_own_is_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "world_size", lambda: 2)
    monkeypatch.setattr(gather, "all_gather_cat", lambda mine: pytest.fail("gathered"))
    data = dataset(6)
    loader = DataLoader(data, batch_size=2, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(0)))
    features, _ = gather.extract_over_ranks(lambda x: x, loader, "cpu")
    assert sorted(features[:, 0].tolist()) == list(range(6))
