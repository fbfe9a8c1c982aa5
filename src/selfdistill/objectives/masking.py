"""The student's view of masked images, for the objectives that ask what is behind the masks.

Shapes: G masked crops, B images, N patches, M masked patches, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdistill.views.micro_batches import in_micro_batches

if TYPE_CHECKING:
    from selfdistill.methods import SelfDistillModule
    from selfdistill.views import Views


def new_mask_token(dim: int) -> nn.Parameter:
    """A token ``[D]`` to stand in the place of a masked patch."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))


def masked_crops(views: Views, objective: str) -> Tensor:
    """The crops that have masks, ``[G·B, C, H, W]``: the student's of the first one's size.

    Raises:
        ValueError: none has, which names ``objective``.
    """
    if "mask" not in views.masks:
        raise ValueError(
            f"objective.{objective}: views without masked patches given; choose views=ibot, dinov2, data2vec or msn"
        )
    pairs = zip(views.student, views.student_masks, strict=True)
    return torch.cat([crop for crop, mask in pairs if mask is not None])


def encode_masked(module: SelfDistillModule[Any, Any], views: Views, mask_token: Tensor, objective: str) -> Tensor:
    """The student's tokens ``[M, D]`` at the masked patches of ``masked_crops``, of which it sees the others only.

    One more forward pass of the student's backbone, in float32: the method's own is of whole images, or masked with
    a token of its own, and keeps no tokens. The head is left out, or its batch norm would see masked images too.
    """

    def tokens(part: Views) -> Tensor:
        mask = part.mask("mask").flatten(0, 1)
        encoded = module.student.backbone(masked_crops(part, objective), mask=mask, mask_token=mask_token).tokens
        assert encoded is not None
        return encoded.flatten(0, 1).index_select(0, part.mask("masked"))

    return in_micro_batches(tokens, views, module.micro_batch_size, "masked")


def is_masked(views: Views) -> Tensor:
    """``[M]`` bool: False for the one position that stands for no masked patch at all."""
    return views.mask("masked_weight") > 0
