"""The log-sum-exp over a queue in chunks, against the same in one piece in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfdistill.divergences import queued
from selfdistill.divergences.contrastive import info_nce, info_nce_queue
from selfdistill.divergences.queued import queue_logsumexp
from selfdistill.products import unit


def draw(*shape: int, seed: int = 0) -> Tensor:
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.fixture(params=[1, 3, 10, 100])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "_CPU_CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (4,)])
@pytest.mark.parametrize("temperature", [0.2, 1e-3])
def test_value_and_gradient_of_one_piece(shape: tuple[int, ...], temperature: float) -> None:
    queries, queue = draw(*shape).requires_grad_(), draw(10, 4, seed=1)
    value = queue_logsumexp(queries, queue, temperature=temperature)
    expected = (queries @ queue.T / temperature).logsumexp(-1)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    weights = torch.arange(1.0, value.numel() + 1).view(value.shape)
    (gradient,) = torch.autograd.grad((weights * value).sum(), queries)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), queries)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(queue_logsumexp(queries.detach(), queue, temperature=temperature), value.detach())


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "_CPU_CHUNK", 2)
    queries, queue = draw(3, 4).requires_grad_(), draw(5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda q: queue_logsumexp(q, queue, temperature=0.3), queries)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype: torch.dtype) -> None:
    queries, queue = draw(3, 4).to(dtype).requires_grad_(), draw(5, 4, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = queue_logsumexp(queries, queue, temperature=0.2)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert queries.grad is not None
    assert queries.grad.dtype == dtype
    assert torch.equal(value, queue_logsumexp(queries.float(), queue.float(), temperature=0.2))


def test_the_queue_gets_no_gradient_and_there_is_no_second_derivative() -> None:
    queries, queue = draw(3, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    value = queue_logsumexp(queries, queue, temperature=0.2).sum()
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(value, queries, create_graph=True)
    queue_logsumexp(queries, queue, temperature=0.2).sum().backward()
    assert queue.grad is None


def test_info_nce_against_all_similarities() -> None:
    queries, keys, queue = (draw(n, 4, seed=n).requires_grad_() for n in (6, 6, 9))
    keys = draw(6, 4, seed=3).requires_grad_()
    losses = info_nce_queue(queries, keys, queue, temperature=0.2)
    expected = info_nce((queries * keys).sum(-1), queries @ queue.detach().T, temperature=0.2)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(losses.sum(), [queries, keys]),
        torch.autograd.grad(expected.sum(), [queries, keys]),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="queue"):
        queue_logsumexp(torch.zeros(2, 3), torch.zeros(5, 4), temperature=0.2)
    with pytest.raises(ValueError, match="queue"):
        queue_logsumexp(torch.zeros(2, 3), torch.zeros(0, 3), temperature=0.2)
    with pytest.raises(ValueError, match="temperature"):
        queue_logsumexp(torch.zeros(2, 3), torch.zeros(5, 3), temperature=0.0)
