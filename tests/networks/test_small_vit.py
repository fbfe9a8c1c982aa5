"""The small vision transformer starts where a short run can use it."""

from __future__ import annotations

import pytest
import torch

from selfdistill.heads import sincos_2d
from selfdistill.networks import build_backbone


def test_positions_count_as_much_as_patches_and_blocks_as_their_width_asks() -> None:
    torch.manual_seed(0)
    vit = build_backbone("small_vit", channels=1, image_size=8, patch_size=2)
    torch.testing.assert_close(vit.model.pos_embed[0, 1:], sincos_2d(128, (4, 4)))
    assert vit.model.pos_embed.requires_grad
    # Xavier's: 2 / (inputs + outputs)
    for block in vit.model.blocks:
        assert block.mlp.fc1.weight.std().item() == pytest.approx((2 / (128 + 512)) ** 0.5, rel=0.02)


def test_other_resolutions() -> None:
    vit = build_backbone("small_vit", channels=1, image_size=8, patch_size=2, drop_path=0.2)
    assert vit(torch.zeros(2, 1, 6, 6)).tokens.shape == (2, 9, 128)
    assert vit.grid((8, 8)) == (4, 4)
    assert max(part.drop_prob for part in vit.modules() if type(part).__name__ == "DropPath") == pytest.approx(0.2)
    assert build_backbone("small_vit")(torch.zeros(1, 3, 32, 32)).pooled.shape == (1, 128)
