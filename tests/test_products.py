"""The quick product against the plain one."""

from __future__ import annotations

import pytest
import torch

from selfdistill.products import row_products


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
