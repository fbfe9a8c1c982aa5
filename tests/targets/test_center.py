import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.targets import Center


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_follows_the_recursion_of_the_paper_with_the_old_center_in_the_forward():
    center = Center(4, momentum=0.9)
    expected = torch.zeros(4, dtype=torch.float64)
    for step in range(5):
        batch = logits(6, 4, seed=step)
        torch.testing.assert_close(center(batch), (batch.double() - expected).float())
        center.observe(batch)
        torch.testing.assert_close(center(batch), (batch.double() - expected).float())
        center.commit()
        expected = 0.9 * expected + 0.1 * batch.double().mean(0)
    assert center.center.shape == (1, 4)
    torch.testing.assert_close(center.center[0], expected.float())


def test_constant_logits_approach_their_value_geometrically():
    center = Center(2, momentum=0.7)
    value = torch.tensor([[5.0, -2.0]])
    for _ in range(10):
        center.observe(value.expand(3, 2))
        center.commit()
    torch.testing.assert_close(center.center, value * (1 - 0.7**10))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_micro_batches_of_any_size_equal_one_batch(sizes: list[int]):
    batch = logits(sum(sizes), 3)
    whole, parts = Center(3), Center(3)
    whole.observe(batch)
    for part in batch.split(sizes):
        parts.observe(part)
    for center in (whole, parts):
        center.commit()
    torch.testing.assert_close(parts.center, whole.center)


def test_all_leading_dimensions_are_samples():
    batch = logits(2, 3, 5, 4)
    flat, deep = Center(4), Center(4)
    flat.observe(batch.reshape(-1, 4))
    deep.observe(batch)
    for center in (flat, deep):
        center.commit()
    torch.testing.assert_close(deep.center, flat.center)
    assert deep(batch).shape == batch.shape
    assert deep(batch[0, 0, 0]).shape == (4,)


@pytest.mark.parametrize("momentum", [0, 1])
def test_the_ends_of_momentum(momentum: int):
    center = Center(3, momentum=momentum)
    batch = logits(4, 3)
    center.observe(batch)
    center.commit()
    torch.testing.assert_close(center.center, (1 - momentum) * batch.mean(0, keepdim=True))


@pytest.mark.parametrize("bad", [torch.empty(0, 2), torch.tensor([[float("inf"), 0.0]]), torch.full((1, 2), torch.nan)])
def test_no_sample_or_a_non_finite_one_leaves_the_center_alone(bad: torch.Tensor):
    center = Center(2)
    center.observe(torch.tensor([[1.0, 2.0]]))
    center.commit()
    before = center.center.clone()
    center.observe(bad)
    center.commit()
    assert torch.equal(center.center, before)
    assert before.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_averaged_in_float32(dtype: torch.dtype):
    # The sum, 409700, overflows float16 and is rounded to 409600 in bfloat16.
    batch = torch.full((4097, 2), 100.0, dtype=dtype)
    center = Center(2, momentum=0.0)
    center.observe(batch)
    center.commit()
    assert torch.equal(center.center, torch.full((1, 2), 100.0))
    assert center(batch).dtype == torch.float32


def test_float64_logits_stay_float64():
    assert Center(2)(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_the_center_survives_a_checkpoint(tmp_path):
    center = Center(3)
    center.observe(logits(4, 3))
    center.commit()
    torch.save(center.state_dict(), tmp_path / "center.pt")
    restored = Center(3)
    restored.load_state_dict(torch.load(tmp_path / "center.pt", weights_only=True))
    for each in (center, restored):
        each.observe(logits(4, 3, seed=1))
        each.commit()
    assert torch.equal(restored.center, center.center)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dim": 2, "momentum": 1.5}, r"momentum must be in \[0, 1\], got 1.5"),
        ({"dim": 2, "momentum": -0.1}, "momentum must be"),
        ({"dim": 2, "momentum": float("nan")}, "momentum must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Center(**arguments)


@pytest.mark.parametrize("shape", [(2, 1), (2, 4), ()])
@pytest.mark.parametrize("call", ["observe", "forward"])
def test_logits_of_another_size_are_refused_instead_of_broadcast(shape: tuple[int, ...], call: str):
    with pytest.raises(ValueError, match=r"logits must have shape \[..., 3\]"):
        getattr(Center(3), call)(torch.zeros(shape))
