"""A head for the class token of every crop and for the masked patches of some."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ClassPatchHead"]


class ClassPatchHead(nn.Module):
    """Pooled features [..., D] and patches [M, D] -> [..., K] and [M, K'], as `Tower` calls it with `select`.

    One head for both runs once, over all tokens together (iBOT, arXiv 2111.07832, §3.2: sharing it helps); a head of
    its own for the patches is DINOv2's choice for its largest networks (arXiv 2304.07193, §4).

    Args:
        head: of the pooled features, and of the patches where `patch_head` is None; its `out_dim` is K.
        patch_head: of the patches.
    """

    def __init__(self, head: nn.Module, patch_head: nn.Module | None = None) -> None:
        super().__init__()
        self.head = head
        self.patch_head = patch_head
        self.out_dim: int | None = getattr(head, "out_dim", None)

    def forward(self, pooled: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        if self.patch_head is not None:
            return self.head(pooled), self.patch_head(patches)
        rows = pooled.flatten(0, -2)
        both: Tensor = self.head(torch.cat([rows, patches]))
        of_pooled, of_patches = both.split([len(rows), len(patches)])
        return of_pooled.unflatten(0, pooled.shape[:-1]), of_patches
