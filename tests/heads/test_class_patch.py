"""One head over all tokens, or two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfdistill.heads import ClassPatchHead, DINOHead, NoHead


class Counting(nn.Linear):
    """A layer that writes down how many rows it saw."""

    def __init__(self, out: int) -> None:
        super().__init__(4, out)
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(x[..., 0].numel())
        return super().forward(x)


def test_a_shared_head_runs_once_over_all_tokens() -> None:
    head = Counting(6)
    pooled, patches = torch.randn(3, 5, 4), torch.randn(7, 4)
    logits, of_patches = ClassPatchHead(head)(pooled, patches)
    assert head.rows == [3 * 5 + 7]
    torch.testing.assert_close(logits, nn.functional.linear(pooled, head.weight, head.bias))
    torch.testing.assert_close(of_patches, nn.functional.linear(patches, head.weight, head.bias))


def test_two_heads_see_their_own_tokens() -> None:
    head, patch_head = Counting(6), Counting(2)
    logits, of_patches = ClassPatchHead(head, patch_head)(torch.randn(3, 5, 4), torch.randn(7, 4))
    assert (head.rows, patch_head.rows) == ([15], [7])
    assert (logits.shape, of_patches.shape) == ((3, 5, 6), (7, 2))


def test_a_batch_without_crops() -> None:
    logits, of_patches = ClassPatchHead(nn.Linear(4, 6))(torch.randn(5, 4), torch.randn(2, 4))
    assert (logits.shape, of_patches.shape) == ((5, 6), (2, 6))


def test_no_head() -> None:
    pooled = torch.randn(2, 3)
    assert NoHead()(pooled, torch.randn(2, 5, 3)) is pooled
    assert not list(NoHead().parameters())


def test_out_dim_is_that_of_the_class_tokens() -> None:
    assert ClassPatchHead(DINOHead(6, hidden_dim=8, bottleneck_dim=4, prototypes=5)).out_dim == 5
    assert ClassPatchHead(nn.Identity()).out_dim is None
