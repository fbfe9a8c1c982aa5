"""What a method without a projection puts in a tower."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["NoHead"]


class NoHead(nn.Module):
    """The pooled features as they are, for methods that learn from tokens or layers: (pooled, ...) -> pooled."""

    def forward(self, pooled: Tensor, *others: Tensor) -> Tensor:
        return pooled
