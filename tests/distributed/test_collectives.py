"""Two processes against one: the same computation, on shards of unequal size and on everything."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from two_ranks import on_two_ranks

from selfdistill import distributed
from selfdistill.methods.finite import FiniteGuard, NonFiniteLossError
from selfdistill.regularizers import me_max, variance_covariance
from selfdistill.targets import Center, Queue, sinkhorn

SHARDS = (slice(0, 5), slice(5, 8))
EMPTY_SHARDS = (slice(0, 8), slice(8, 8))


def inputs() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def computation(shard: slice, empty_shard: slice) -> dict[str, Tensor]:
    """Everything that may talk to other ranks; results of this rank's rows are named `rows_…`."""
    x = inputs()
    mine = x[shard]
    results = {}

    center, empty_center, queue = Center(6), Center(6), Queue(11, 6)
    for step in range(3):
        for micro_batch in (mine[:2], mine[2:]):
            center.observe(micro_batch + step)
            queue.observe(micro_batch + step)
        empty_center.observe(x[empty_shard])
        for state in (center, empty_center, queue):
            state.commit()
    results |= {"center": center.center, "empty_center": empty_center.center, "queue": queue()}
    results["pointer"] = torch.tensor(queue.pointer)

    results["rows_codes"] = sinkhorn(mine, epsilon=0.05, iterations=3)
    # The largest scores live on one rank only: a maximum per rank would show.
    results["rows_extreme_codes"] = sinkhorn(mine * x[shard, :1] * 1e3, epsilon=0.05, iterations=3)
    results["rows_empty_codes"] = sinkhorn(x[empty_shard], epsilon=0.05, iterations=3)

    losses = {
        "me_max": lambda z: me_max(z, 0.1),
        "variance": lambda z: variance_covariance(z)[0],
        "covariance": lambda z: variance_covariance(z)[1],
    }
    for name, loss in losses.items():
        weight = torch.eye(6, requires_grad=True)
        value = loss(mine @ weight)
        value.backward()
        results[name] = value.detach()
        results[f"average_gradient_of_{name}"] = weight.grad

    # In-batch contrast: queries of this rank against keys of all; the loss is a sum over this rank's queries.
    weight = torch.eye(6, requires_grad=True)
    keys = distributed.all_gather_cat_grad(mine @ weight)
    logits = mine @ weight @ keys.T
    F.cross_entropy(logits, torch.arange(8)[shard], reduction="sum").backward()
    results["sum_gradient_of_contrast"] = weight.grad

    results["sum"] = distributed.all_reduce_sum(mine.sum(0))
    results["max"] = distributed.all_reduce_max(mine.T.amax(1))
    results["gathered"] = distributed.all_gather_cat(mine)
    results["gathered_integers"] = distributed.all_gather_cat(torch.arange(8)[shard])
    results["gathered_strided"] = distributed.all_gather_cat(x.T.contiguous().T[shard])
    results["gathered_from_one"] = distributed.all_gather_cat(x[empty_shard])
    return results


def refusal(*, finite: bool) -> str:
    """What the guard says after a step of this process."""
    guard, term = FiniteGuard(), torch.tensor(1.0 if finite else torch.nan)
    guard.watch(term, {"near": torch.tensor(1.0), "far": term})
    try:
        guard.refuse(7, patience=1)
    except NonFiniteLossError as error:
        return str(error)
    return ""


def on_rank(rank: int) -> dict[str, Tensor]:
    results = computation(SHARDS[rank], EMPTY_SHARDS[rank])

    untouched = torch.ones(3, requires_grad=True)
    reduced = [distributed.all_reduce_sum(untouched), distributed.all_reduce_max(untouched)]
    results["untouched"] = untouched.detach()
    results["detached"] = torch.tensor(not any(each.requires_grad for each in reduced))
    results["mean"] = distributed.all_reduce_mean_grad(torch.tensor([2.0 * rank]))
    results["even"] = distributed.all_gather_cat(torch.full((2, 1), float(rank)))
    results["place"] = torch.tensor([distributed.rank(), distributed.world_size()])
    says = "'far' is not finite in another process at step 7" if rank == 0 else "'far' is nan at step 7"
    results["refused"] = torch.tensor([refusal(finite=True) == "", says in refusal(finite=rank == 0)])
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return on_two_ranks(on_rank, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return computation(slice(0, 8), slice(0, 8))


def test_two_ranks_equal_one_process(ranks: list[dict[str, Tensor]], alone: dict[str, Tensor]):
    for name, expected in alone.items():
        parts = [results[name] for results in ranks]
        if name.startswith("rows_"):
            parts = [torch.cat(parts)]
        elif name.startswith("average_"):
            parts = [torch.stack(parts).mean(0)]
        elif name.startswith("sum_"):
            parts = [torch.stack(parts).sum(0)]
        for part in parts:
            assert torch.allclose(part, expected, rtol=1e-5, atol=1e-6), f"{name}: {part} instead of {expected}"


def test_the_comparison_is_about_something(alone: dict[str, Tensor]):
    for name, value in alone.items():
        if name != "pointer":
            assert value.double().abs().max() > 1e-3, name


def test_plain_collectives(ranks: list[dict[str, Tensor]]):
    for rank, results in enumerate(ranks):
        assert results["place"].tolist() == [rank, 2]
        assert results["untouched"].tolist() == [1, 1, 1]
        assert results["detached"]
        assert results["mean"].tolist() == [1]
        assert results["even"].flatten().tolist() == [0, 0, 1, 1]


def test_a_loss_that_is_not_finite_in_one_process_ends_all(ranks: list[dict[str, Tensor]]):
    for results in ranks:
        assert results["refused"].tolist() == [True, True]


def test_one_process_is_the_identity():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    x = torch.ones(2, requires_grad=True)
    for function in (distributed.all_reduce_sum, distributed.all_reduce_max, distributed.all_gather_cat):
        assert torch.equal(function(x), x)
        assert function(x).data_ptr() == x.data_ptr()
        assert not function(x).requires_grad
    assert distributed.all_reduce_mean_grad(x) is x
    assert distributed.all_gather_cat_grad(x) is x
