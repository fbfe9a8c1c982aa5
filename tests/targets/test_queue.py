from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.targets import Queue


def push(queue: Queue, *batches: torch.Tensor) -> None:
    for batch in batches:
        queue.observe(batch)
    queue.commit()


def by_age(queue: Queue) -> list[float]:
    """First entry of each row, oldest row first."""
    return queue().roll(-queue.pointer, 0)[:, 0].tolist()


def counting(start: int, rows: int) -> torch.Tensor:
    return torch.arange(start, start + rows, dtype=torch.float32)[:, None].expand(rows, 2)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(length=st.integers(1, 7), sizes=st.lists(st.integers(0, 17), min_size=1, max_size=6))
def test_holds_the_newest_rows_whatever_the_batch_sizes(length: int, sizes: list[int]):
    queue = Queue(length, 2)
    expected = deque(queue()[:, 0].tolist(), maxlen=length)
    start = 100
    for size in sizes:
        push(queue, counting(start, size))
        expected.extend(range(start, start + size))
        start += size
        assert by_age(queue) == list(expected)
        assert queue.pointer == (start - 100) % length
        assert queue.filled == min(start - 100, length)
        assert queue.is_full == (start - 100 >= length)


def test_micro_batches_equal_one_batch():
    whole, parts = Queue(5, 2), Queue(5, 2)
    push(whole, counting(0, 7))
    push(parts, counting(0, 3), counting(3, 4))
    assert torch.equal(parts(), whole())
    assert parts.pointer == whole.pointer


def test_keys_of_a_step_are_not_among_its_negatives():
    queue = Queue(4, 2)
    before = queue().clone()
    queue.observe(counting(100, 4))
    assert torch.equal(queue(), before)
    queue.commit()
    assert not torch.isin(before, queue()).any()


def test_reading_and_committing_copy_nothing():
    queue = Queue(6, 2)
    address = queue.items.data_ptr()
    assert queue().data_ptr() == address
    push(queue, counting(0, 4))
    push(queue, counting(4, 4))
    assert queue().data_ptr() == address


def test_a_step_trains_against_the_queue_and_a_commit_before_backward_is_loud():
    queue = Queue(6, 2)
    query = torch.ones(3, 2, requires_grad=True)
    (query @ queue().T).sum().backward()
    torch.testing.assert_close(query.grad, queue().sum(0).expand(3, 2))
    assert not queue().requires_grad

    loss = (query @ queue().T).sum()
    push(queue, counting(0, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_starts_with_its_own_random_unit_rows():
    state = torch.get_rng_state()
    queue = Queue(64, 8, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(queue().norm(dim=1), torch.ones(64))
    assert torch.equal(queue(), Queue(64, 8, seed=3)())
    assert not torch.equal(queue(), Queue(64, 8, seed=4)())
    assert (queue() @ queue().T).fill_diagonal_(0).abs().max() < 0.99
    assert queue.filled == 0


def test_resuming_continues_where_it_stopped(tmp_path):
    queue = Queue(5, 2)
    push(queue, counting(0, 7))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    restored = Queue(5, 2, seed=1)
    restored.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    assert restored.is_full
    for each in (queue, restored):
        push(each, counting(7, 2))
    assert torch.equal(restored(), queue())
    assert by_age(restored) == [4, 5, 6, 7, 8]


def test_half_precision_keys_are_stored_in_float32():
    queue = Queue(3, 2)
    push(queue, torch.full((3, 2), 1.5, dtype=torch.bfloat16))
    assert torch.equal(queue(), torch.full((3, 2), 1.5))


@pytest.mark.parametrize(("length", "dim", "name"), [(0, 2, "length"), (-3, 2, "length"), (3, 0, "dim")])
def test_sizes_that_cannot_work_are_refused(length: int, dim: int, name: str):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {min(length, dim)}"):
        Queue(length, dim)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1), (2, 4, 2)])
def test_keys_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"keys must have shape \[batch, 2\], got"):
        Queue(5, 2).observe(torch.zeros(shape))
