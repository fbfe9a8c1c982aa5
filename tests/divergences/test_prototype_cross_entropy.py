"""Head and loss in chunks against the plain head and the plain loss, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.divergences.prototypes import prototype_cross_entropy

V, G, B, P, K = 4, 2, 7, 5, 11
PAIRS = [(v, g) for v in range(V) for g in range(G) if v != g]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (V, B, P), (K, P), (G, B, K)
    features, prototypes, teacher = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return features.requires_grad_(), prototypes.requires_grad_(), teacher


def plain(
    features: Tensor, prototypes: Tensor, teacher: Tensor, teacher_temperature: float | None, normalize: bool
) -> Tensor:
    rows = F.normalize(prototypes, dim=1, eps=1e-6) if normalize else prototypes
    log_p = F.log_softmax(features @ rows.T / 0.5, dim=-1)
    target = teacher if teacher_temperature is None else torch.softmax(teacher / teacher_temperature, dim=-1)
    return torch.stack([-(target[g] * log_p[v]).sum(-1).mean() for v, g in PAIRS]).mean()


@pytest.mark.parametrize("chunk_rows", [1, 3, None])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("teacher_temperature", [0.2, None])
def test_value_and_gradients(chunk_rows: int | None, normalize: bool, teacher_temperature: float | None) -> None:
    features, prototypes, teacher = inputs()
    with torch.no_grad():
        prototypes[3] *= 1e-9  # too short to be normalised
    teacher = teacher if teacher_temperature else teacher.softmax(-1) * 1.7
    value = prototype_cross_entropy(
        features, prototypes, teacher, student_temperature=0.5, teacher_temperature=teacher_temperature,
        normalize=normalize, chunk_rows=chunk_rows,
    )  # fmt: skip
    expected = plain(features, prototypes, teacher, teacher_temperature, normalize)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    found = torch.autograd.grad(3 * value, [features, prototypes])
    for mine, wanted in zip(found, torch.autograd.grad(3 * expected, [features, prototypes]), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)


def test_chosen_pairs_and_a_crop_in_none() -> None:
    features, prototypes, teacher = inputs()
    pairs = [(0, 1), (2, 0), (2, 1), (2, 1)]
    value = prototype_cross_entropy(
        features, prototypes, teacher, student_temperature=0.5, teacher_temperature=0.2, pairs=pairs
    )
    log_p, p = F.log_softmax(features @ prototypes.T / 0.5, -1), torch.softmax(teacher / 0.2, -1)
    expected = torch.stack([-(p[g] * log_p[v]).sum(-1).mean() for v, g in pairs]).mean()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    found = torch.autograd.grad(value, [features, prototypes])
    for mine, wanted in zip(found, torch.autograd.grad(expected, [features, prototypes]), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision(dtype: torch.dtype) -> None:
    features, prototypes, teacher = inputs(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = prototype_cross_entropy(
            features, prototypes, teacher, student_temperature=0.5, teacher_temperature=0.2, normalize=True
        )
    value.backward()
    exact = [x.detach().double().requires_grad_() for x in (features, prototypes)]
    expected = plain(exact[0], exact[1], teacher.double(), 0.2, True)
    expected.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    for mine, wanted in zip((features, prototypes), exact, strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_two_backwards() -> None:
    features, prototypes, teacher = inputs()
    value = prototype_cross_entropy(features, prototypes, teacher, student_temperature=0.5, teacher_temperature=0.2)
    first = torch.autograd.grad(value, [features, prototypes], retain_graph=True)
    first = [g.clone() for g in first]
    for one, two in zip(first, torch.autograd.grad(2 * value, [features, prototypes]), strict=True):
        torch.testing.assert_close(2 * one, two)
    value = prototype_cross_entropy(features, prototypes, teacher, student_temperature=0.5, teacher_temperature=0.2)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(value, features, create_graph=True)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and func is not torch.ops.aten.detach.default:
            self.elements = max(self.elements, out.numel())
        return out


def test_nothing_grows_with_the_batch_but_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features, prototypes, teacher = (
        torch.randn(shape, generator=generator) for shape in ((4, 64, 3), (50, 3), (2, 64, 50))
    )
    with Largest() as largest:
        prototype_cross_entropy(
            features.requires_grad_(), prototypes.requires_grad_(), teacher, student_temperature=0.1,
            teacher_temperature=0.04, normalize=True, chunk_rows=2,
        ).backward()  # fmt: skip
    # a view of the teacher is the largest there is
    assert largest.elements <= max(teacher.numel() // 32, features.numel(), prototypes.numel())


def test_bad_input() -> None:
    features, prototypes, teacher = inputs()
    settings: dict[str, Any] = {"student_temperature": 0.5, "teacher_temperature": 0.2}
    with pytest.raises(ValueError, match="features"):
        prototype_cross_entropy(features[0], prototypes, teacher, **settings)
    with pytest.raises(ValueError, match="prototypes"):
        prototype_cross_entropy(features, prototypes[:, :3], teacher, **settings)
    with pytest.raises(ValueError, match="teacher"):
        prototype_cross_entropy(features, prototypes, teacher[:, :2], **settings)
    with pytest.raises(ValueError, match="chunk_rows"):
        prototype_cross_entropy(features, prototypes, teacher, chunk_rows=0, **settings)
    with pytest.raises(ValueError, match="student_temperature"):
        prototype_cross_entropy(features, prototypes, teacher, student_temperature=0, teacher_temperature=None)
