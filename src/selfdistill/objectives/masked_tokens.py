"""The student says what the teacher, which sees the whole image, has at masked patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.objectives.base import Need, Objective, mean_where
from selfdistill.objectives.masking import encode_masked, is_masked, masked_crops, new_mask_token

if TYPE_CHECKING:
    from selfdistill.methods import SelfDistillModule
    from selfdistill.views import Views


class MaskedTokens(Objective):
    """``L = mean over masked patches of ‖r(h_m) − LN(t_m)‖² / D``, 0 where none is masked.

    h are the student's tokens of the masked image, t the teacher's of the whole of the same crop, behind a
    stop-gradient; LN has no parameters, r is linear: data2vec's task (arXiv 2202.03555) on the last layer alone. Mask
    token and r are learned here. A method's outputs hold no tokens, so this costs one forward pass more of each
    backbone (see `encode_masked`), and the student's backward. The mean is over all ranks; micro-batches with
    different numbers of masked patches weigh the same.
    """

    name: ClassVar[str] = "masked_tokens"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "tokens", "masks"})

    def attach(self, module: SelfDistillModule[Any, Any]) -> None:
        super().attach(module)
        dim = module.student.backbone.dim
        self.mask_token = new_mask_token(dim)
        self.regressor = nn.Linear(dim, module.teaching_tower.backbone.dim)

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Any, targets: Any
    ) -> dict[str, Tensor]:
        crops = masked_crops(views, self.name)
        wanted = self._targets(module, views, crops)
        predicted = self.regressor(encode_masked(module, views, crops, self.mask_token))
        distance = (predicted - wanted).square().mean(-1)
        return {"masked_tokens": mean_where(distance, is_masked(views))}

    @torch.no_grad()
    def _targets(self, module: SelfDistillModule[Any, Any], views: Views, crops: Tensor) -> Tensor:
        tokens = module.teaching_tower.backbone(crops).tokens
        assert tokens is not None
        patches = views.mask("mask").shape[-1]
        if tokens.shape[1] != patches:
            raise ValueError(
                f"objective.masked_tokens: {tokens.shape[1]} patches of the teacher given for {patches} of the "
                "student; choose a teacher with patches of the same size"
            )
        masked = tokens.flatten(0, 1).index_select(0, views.mask("masked"))
        return F.layer_norm(masked, masked.shape[-1:])
