import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.divergences import fused_cross_entropy

Pairs = list[tuple[int, int]]


def crops(V: int, G: int, B: int = 7, K: int = 11, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(V + 100 * G)
    student = torch.randn(V, B, K, generator=generator, dtype=torch.float64) * scale
    teacher = torch.randn(G, B, K, generator=generator, dtype=torch.float64) * scale
    return student, teacher


def plain(
    student: Tensor,
    teacher: Tensor,
    student_temperature: float,
    teacher_temperature: float | None,
    pairs: Pairs | None = None,
) -> Tensor:
    """The loss as the paper's pseudocode has it, a pair at a time, in float64."""
    if pairs is None:
        pairs = [(v, g) for v, g in product(range(len(student)), range(len(teacher))) if v != g]
    terms = []
    for v, g in pairs:
        target = teacher[g].double()
        if teacher_temperature is not None:
            target = torch.softmax(target / teacher_temperature, dim=-1)
        log_p = torch.log_softmax(student[v].double() / student_temperature, dim=-1)
        terms.append(-(target * log_p).sum(-1).mean())
    return torch.stack(terms).mean()


def check(student: Tensor, teacher: Tensor, teacher_temperature: float | None = 0.2, **options: Any) -> None:
    student = student.clone().requires_grad_()
    value = fused_cross_entropy(
        student, teacher, student_temperature=0.5, teacher_temperature=teacher_temperature, **options
    )
    expected = plain(student, teacher, 0.5, teacher_temperature, options.get("pairs"))
    assert value.shape == ()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(3 * value, student)
    (expected_gradient,) = torch.autograd.grad(3 * expected, student)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("V", "G"), [(v, g) for v in range(2, 11) for g in (1, 2)] + [(3, 3), (2, 4)])
def test_equals_the_plain_loss(V: int, G: int):
    check(*crops(V, G))


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 6, 7, 8, 100])
def test_chunks_change_nothing(chunk_rows: int):
    check(*crops(4, 2), chunk_rows=chunk_rows)


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 0), (1, 1)],
        [(0, 0)],
        [(2, 1), (3, 0), (3, 1)],
        [(0, 1), (0, 1), (1, 0)],
        [(v, 0) for v in range(4)],
    ],
    ids=["same view", "one", "local crops", "one twice", "one teacher"],
)
@pytest.mark.parametrize("chunk_rows", [3, None])
def test_chosen_pairs(pairs: Pairs, chunk_rows: int | None):
    check(*crops(4, 2), pairs=pairs, chunk_rows=chunk_rows)


def test_one_crop_of_one_row_and_two_prototypes():
    check(*crops(1, 1, B=1, K=2), pairs=[(0, 0)])


@pytest.mark.parametrize("chunk_rows", [2, None])
def test_teacher_of_probabilities(chunk_rows: int | None):
    student, teacher = crops(4, 2)
    codes = torch.softmax(teacher, -1)
    check(student, codes, teacher_temperature=None, chunk_rows=chunk_rows)
    codes[0, 2] = 0
    codes[1, 3] *= 1.7
    check(student, codes, teacher_temperature=None, chunk_rows=chunk_rows)


@pytest.mark.parametrize("chunk_rows", [2, None])
@pytest.mark.parametrize("temperature", [0.2, None])
def test_rows_of_different_weight(chunk_rows: int | None, temperature: float | None):
    student, teacher = crops(4, 2)
    teacher = teacher if temperature else torch.softmax(teacher, -1)
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.1, 1.0, 3.0], dtype=torch.float64)
    student.requires_grad_()
    options: dict[str, Any] = {"teacher_temperature": temperature, "chunk_rows": chunk_rows}
    value = fused_cross_entropy(student, teacher, student_temperature=0.5, weight=weight, **options)
    rows = [plain(student[:, b : b + 1], teacher[:, b : b + 1], 0.5, temperature) for b in range(7)]
    expected = (torch.stack(rows) * weight).sum() / 7
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    (gradient,), (wanted,) = torch.autograd.grad(value, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="weight"):
        fused_cross_entropy(student, teacher, student_temperature=0.5, weight=weight[:3], **options)


def test_views_of_other_tensors():
    student, teacher = crops(4, 2, B=6, K=6)
    check(student.transpose(1, 2), teacher.transpose(1, 2))
    check(student[:1].expand(3, 6, 6), teacher[:, :1].expand(2, 6, 6))


def test_gradcheck():
    student, teacher = crops(3, 2, B=3, K=4)

    def loss(student: Tensor, **options: Any) -> Tensor:
        return fused_cross_entropy(
            student, teacher, student_temperature=0.3, teacher_temperature=0.2, chunk_rows=2, **options
        )

    assert torch.autograd.gradcheck(loss, student.requires_grad_())
    assert torch.autograd.gradcheck(lambda s: loss(s, pairs=[(2, 0), (2, 1), (0, 0)]), student)


@pytest.mark.parametrize("K", [2, 1000])
def test_uniform_student_costs_ln_k(K: int):
    value = fused_cross_entropy(
        torch.full((3, 2, K), 5.0),
        torch.randn(2, 2, K, generator=torch.Generator().manual_seed(0)),
        student_temperature=0.1,
        teacher_temperature=0.04,
    )
    torch.testing.assert_close(value, torch.tensor(math.log(K)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_precision(dtype: torch.dtype, autocast: bool):
    student, teacher = (x.to(dtype) for x in crops(4, 2, B=5, K=300, scale=2.0))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = fused_cross_entropy(student, teacher, student_temperature=0.1, teacher_temperature=0.04, chunk_rows=2)
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.dtype == dtype
    exact = student.detach().double().requires_grad_()
    expected = plain(exact, teacher, 0.1, 0.04)
    expected.backward()
    assert exact.grad is not None
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    rounding = torch.finfo(dtype).eps
    atol = 1e-7 if dtype == torch.float16 else 1e-9  # fp16 has no steps smaller than 6e-8
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=max(rounding, 2e-5), atol=atol)


def test_float64_teacher_widens_the_loss_and_not_the_gradient():
    student, teacher = crops(3, 2)
    narrow = student.float().requires_grad_()
    value = fused_cross_entropy(narrow, teacher, student_temperature=0.5, teacher_temperature=0.2)
    torch.testing.assert_close(value, plain(narrow.detach(), teacher, 0.5, 0.2), rtol=1e-12, atol=0)
    value.backward()
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_and_exact_at_the_extremes(dtype: torch.dtype):
    high = torch.tensor([1e4, 1e4, -1e4, 0.0])
    student = torch.stack([high, -high, high, torch.zeros(4)]).expand(3, 4, 4).to(dtype).requires_grad_()
    teacher = torch.stack([-high, high, torch.zeros(4), high]).expand(2, 4, 4).to(dtype)
    value = fused_cross_entropy(student, teacher, student_temperature=0.02, teacher_temperature=0.02)
    torch.testing.assert_close(value.double(), plain(student.detach(), teacher, 0.02, 0.02), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(value, student)
    assert bool(gradient.isfinite().all())


def test_scaled_gradient_of_fp16_does_not_underflow():
    V, G, B, K = 3, 2, 16, 4096
    student, teacher = (x.half() for x in crops(V, G, B, K, scale=0.1))
    student.requires_grad_()
    scale = 2.0**17  # itself beyond fp16
    value = fused_cross_entropy(student, teacher, student_temperature=1.0, teacher_temperature=0.04)
    (value * scale).backward()
    exact = student.detach().double().requires_grad_()
    (plain(exact, teacher, 1.0, 0.04) * scale).backward()
    assert student.grad is not None
    assert exact.grad is not None
    assert exact.grad.abs().median() / scale < 6e-5  # unscaled, below the normal numbers of fp16
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


def test_teacher_gets_no_gradient():
    student, teacher = (x.requires_grad_() for x in crops(3, 2))
    fused_cross_entropy(student, teacher, student_temperature=0.1, teacher_temperature=0.04).backward()
    assert student.grad is not None
    assert teacher.grad is None
    value = fused_cross_entropy(student.detach(), teacher, student_temperature=0.1, teacher_temperature=0.04)
    assert not value.requires_grad


def test_without_grad_the_value_is_the_same():
    student, teacher = crops(3, 2)
    student.requires_grad_()
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    value = fused_cross_entropy(student, teacher, **temperatures)
    with torch.no_grad():
        evaluated = fused_cross_entropy(student, teacher, **temperatures)
    assert not evaluated.requires_grad
    assert torch.equal(value.detach(), evaluated)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_retained_graph_gives_the_same_gradient_again(dtype: torch.dtype):
    student, teacher = (x.to(dtype) for x in crops(3, 2))
    student.requires_grad_()
    value = fused_cross_entropy(student, teacher, student_temperature=0.5, teacher_temperature=0.2)
    (first,) = torch.autograd.grad(2**10 * value, student, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(2**11 * value, student, retain_graph=True)
    (third,) = torch.autograd.grad(2**11 * value, student)
    assert torch.equal(first, kept)
    assert torch.equal(second, 2 * first)
    assert torch.equal(third, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, student)


def test_differentiating_twice_is_an_error():
    student, teacher = crops(3, 2)
    student.requires_grad_()
    value = fused_cross_entropy(student, teacher, student_temperature=0.5, teacher_temperature=0.2)
    with pytest.raises(RuntimeError, match="^fused_cross_entropy cannot be differentiated twice"):
        torch.autograd.grad(value, student, create_graph=True)


class Allocations(TorchDispatchMode):
    """Elements of the largest storages that operations made, views and in-place results left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self.sizes: list[int] = []
        self.alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in self.seen | given:
            self.seen.add(out.untyped_storage().data_ptr())
            self.sizes.append(out.untyped_storage().nbytes() // out.element_size())
            self.alive.append(out)  # so that no address comes back
        return out


def test_one_tensor_of_the_size_of_the_student_and_none_in_backward():
    V, G, B, K = 6, 2, 8, 32
    student, teacher = (x.float() for x in crops(V, G, B, K))
    student.requires_grad_()
    with Allocations() as forward:
        value = fused_cross_entropy(student, teacher, student_temperature=0.1, teacher_temperature=0.04, chunk_rows=2)
    largest = sorted(forward.sizes)
    assert largest[-1] == V * B * K
    assert largest[-2] <= G * 2 * K
    with Allocations() as backward:
        value.backward()
    # The engine's own: the starting gradient of 1.
    assert max(backward.sizes, default=1) == 1
    with Allocations() as evaluation, torch.no_grad():
        fused_cross_entropy(student, teacher, student_temperature=0.1, teacher_temperature=0.04, chunk_rows=2)
    assert max(evaluation.sizes) <= G * 2 * K


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(3, 4)}, r"^student must have shape \[crops, rows, prototypes\].*\[3, 4\]"),
        ({"teacher": torch.zeros(2, 4, 6)}, r"^student must have .* got \[3, 4, 5\] and \[2, 4, 6\]$"),
        ({"teacher": torch.zeros(2, 1, 5)}, r"^student must have .* got \[3, 4, 5\] and \[2, 1, 5\]$"),
        ({"student": torch.zeros(3, 0, 5), "teacher": torch.zeros(2, 0, 5)}, "^student must have .*none 0"),
        ({"student_temperature": 0.0}, "^student_temperature must be a finite number > 0, got 0.0$"),
        ({"student_temperature": None}, "^student_temperature must be a finite number > 0, got None$"),
        ({"teacher_temperature": -0.04}, "^teacher_temperature must be a finite number > 0, got -0.04$"),
        ({"chunk_rows": 0}, "^chunk_rows must be at least 1, got 0$"),
        ({"pairs": []}, "^pairs must hold at least one"),
        ({"pairs": [(0, 2)]}, r"^pairs must be \(student < 3, teacher < 2\), none negative, got \(0, 2\)$"),
        ({"pairs": [(0, 1), (-1, 0)]}, r"^pairs must be .*got \(-1, 0\)$"),
        ({"student": torch.zeros(1, 4, 5), "teacher": torch.zeros(1, 4, 5)}, "^pairs must hold at least one"),
    ],
)
def test_refuses_bad_arguments(change: dict[str, Any], message: str):
    arguments: dict[str, Any] = {
        "student": torch.zeros(3, 4, 5),
        "teacher": torch.zeros(2, 4, 5),
        "student_temperature": 0.1,
        "teacher_temperature": 0.04,
    } | change
    with pytest.raises(ValueError, match=message):
        fused_cross_entropy(**arguments)
