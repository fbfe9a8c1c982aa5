"""The quick product against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from selfdistill.products import row_products, unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 5), (130, 33)])
def test_is_the_plain_product(n: int, m: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, others = (torch.randn(size, 24, generator=generator, dtype=dtype) for size in (n, m))
    products = row_products(rows, others)
    assert products.dtype == dtype
    assert products.is_contiguous()
    torch.testing.assert_close(products, rows @ others.T, rtol=1e-5, atol=1e-5)


def test_rows_that_are_views() -> None:
    wide = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(row_products(wide[:, ::2], wide[:, 1::2]), wide[:, ::2] @ wide[:, 1::2].T)
    assert not row_products(wide.clone().requires_grad_(), wide).requires_grad


def test_unit_is_normalize_in_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([0.0, 1e-9, 1.0, 1e3], dtype=torch.float64)[:, None]
    x = (lengths * F.normalize(torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=1)).requires_grad_()
    direction = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(F.normalize(x, dim=-1, eps=1e-6), x, direction)
    (gradient,) = torch.autograd.grad(unit(x), x, direction)
    torch.testing.assert_close(unit(x), F.normalize(x, dim=-1, eps=1e-6))
    torch.testing.assert_close(gradient, expected)


def test_unit_of_small_halves() -> None:
    x = torch.full((2, 3), 1e-4, dtype=torch.float16, requires_grad=True)
    assert unit(x).dtype == torch.float32
    torch.testing.assert_close(unit(x), torch.full((2, 3), 3**-0.5))
    unit(x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float16


def test_unit_has_no_second_derivative() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(unit(x).sum(), x, create_graph=True)
