"""InfoNCE against loops over single similarities, and over two processes against one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from two_ranks import on_two_ranks

from selfdistill.divergences.contrastive import info_nce, info_nce_in_batch
from selfdistill.products import unit

SHARDS = (slice(0, 5), slice(5, 8))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_of_many(right: float, all_of_them: list[float]) -> float:
    """−log of the share of `right` among `all_of_them` in exponentials."""
    return -math.log(math.exp(right) / sum(math.exp(s) for s in all_of_them))


def test_unit() -> None:
    x = draw(3, 4)
    assert unit(x).norm(dim=-1).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(unit(1e3 * x), unit(x))
    assert unit(x.half()).dtype == torch.float32
    assert unit(x.double()).dtype == torch.float64
    # float16: the square of 1e-4 underflows
    assert unit(torch.full((1, 4), 1e-4, dtype=torch.float16)).norm().item() == pytest.approx(1, abs=1e-3)
    zero = torch.zeros(1, 4, requires_grad=True)
    unit(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_info_nce_against_loops(shape: tuple[int, ...]) -> None:
    positive, negatives = draw(*shape), draw(*shape, 5, seed=1)
    losses = info_nce(positive, negatives, temperature=0.2)
    assert losses.shape == shape
    rows = zip(losses.flatten().tolist(), positive.flatten().tolist(), negatives.view(6, 5).tolist(), strict=True)
    for loss, s, others in rows:
        assert loss == pytest.approx(one_of_many(s / 0.2, [x / 0.2 for x in (s, *others)]), rel=1e-5)


def test_info_nce_gradient_in_closed_form() -> None:
    positive, negatives = draw(4).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    info_nce(positive, negatives, temperature=0.5).sum().backward()
    p = torch.cat([positive[:, None], negatives], dim=1).div(0.5).softmax(1).detach()
    assert positive.grad is not None
    torch.testing.assert_close(positive.grad, (p[:, 0] - 1) / 0.5)
    torch.testing.assert_close(negatives.grad, p[:, 1:] / 0.5)


def test_info_nce_stays_finite_and_positive_at_low_temperatures() -> None:
    for s, others in ((1.0, -1.0), (-1.0, 1.0)):
        positive, negatives = torch.tensor([s], requires_grad=True), torch.full((1, 9), others)
        loss = info_nce(positive, negatives, temperature=1e-3)
        loss.sum().backward()
        assert loss.item() >= 0
        assert loss.isfinite().all()
        assert positive.grad is not None
        assert positive.grad.isfinite().all()


def test_float32_inside() -> None:
    positive, negatives = draw(4).bfloat16(), draw(4, 3).bfloat16()
    exact = info_nce(positive.float(), negatives.float(), temperature=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(positive, negatives, temperature=0.2), exact)
    assert info_nce(positive.double(), negatives.double(), temperature=0.2).dtype == torch.float64

    queries, keys = draw(4, 6), draw(4, 6, seed=1)
    exact = info_nce_in_batch(queries, keys, temperature=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce_in_batch(queries, keys, temperature=0.2), exact)
    assert info_nce_in_batch(queries.double(), keys.double(), temperature=0.2).dtype == torch.float64


def test_in_batch_against_loops() -> None:
    queries, keys = draw(2, 7, 3), draw(2, 7, 3, seed=1)
    losses = info_nce_in_batch(queries, keys, temperature=0.3)
    assert losses.shape == (2, 7)
    for v in range(2):
        for i in range(7):
            s = [sum(queries[v, i, p].item() * keys[v, j, p].item() for p in range(3)) / 0.3 for j in range(7)]
            assert losses[v, i].item() == pytest.approx(one_of_many(s[i], s), rel=1e-5)
    assert torch.equal(info_nce_in_batch(queries[0], keys[0], temperature=0.3), losses[0])


def test_one_image_has_nothing_to_be_told_from() -> None:
    assert info_nce_in_batch(draw(1, 3), draw(1, 3), temperature=1.0).tolist() == [0.0]


def test_gradients_flow_to_both_sides_in_one_batch() -> None:
    queries, keys = draw(5, 3).double().requires_grad_(), draw(5, 3, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: info_nce_in_batch(q, k, temperature=0.5), (queries, keys))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"positive must have .* got \[4\] and \[3, 5\]"):
        info_nce(torch.zeros(4), torch.zeros(3, 5), temperature=1.0)
    with pytest.raises(ValueError, match=r"K >= 1"):
        info_nce(torch.zeros(4), torch.zeros(4, 0), temperature=1.0)
    with pytest.raises(ValueError, match="temperature must be a finite number > 0, got 0"):
        info_nce(torch.zeros(4), torch.zeros(4, 2), temperature=0)
    with pytest.raises(ValueError, match="temperature"):
        info_nce_in_batch(torch.zeros(4, 2), torch.zeros(4, 2), temperature=-1.0)
    with pytest.raises(ValueError, match=r"queries must have .* got \[4\]"):
        info_nce_in_batch(torch.zeros(4), torch.zeros(4), temperature=1.0)
    with pytest.raises(ValueError, match="one shape"):
        info_nce_in_batch(torch.zeros(4, 2), torch.zeros(3, 2), temperature=1.0)


def computation(shard: slice) -> dict[str, Tensor]:
    """Losses of this rank's images, and what their sum asks of weights that all ranks share."""
    x, y = draw(2, 8, 6)[:, shard], draw(2, 8, 6, seed=1)[:, shard]
    results = {}
    for name, teaching in (("teacher", True), ("student", False)):
        weight = torch.eye(6, requires_grad=True)
        keys = y @ weight
        losses = info_nce_in_batch(unit(x @ weight), unit(keys.detach() if teaching else keys), temperature=0.2)
        losses.sum().backward()
        assert weight.grad is not None
        results |= {f"losses_{name}": losses.detach(), f"gradient_{name}": weight.grad}
    return results


def on_rank(rank: int) -> dict[str, Tensor]:
    return computation(SHARDS[rank])


def test_two_uneven_ranks_equal_one_process(tmp_path: Path) -> None:
    parts = on_two_ranks(on_rank, tmp_path)
    for name, expected in computation(slice(0, 8)).items():
        together = [part[name] for part in parts]
        whole = torch.cat(together, dim=1) if name.startswith("losses") else torch.stack(together).sum(0)
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5, msg=name)
