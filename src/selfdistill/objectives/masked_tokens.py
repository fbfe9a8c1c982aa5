"""The student says what the teacher, which sees the whole image, has at masked patches."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.objectives.base import Coupling, Need, Objective, mean_where
from selfdistill.objectives.masking import encode_masked, is_masked, masked_crops, new_mask_token
from selfdistill.views.micro_batches import in_micro_batches

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
    couples: ClassVar[Coupling | None] = "numbers of masked patches"
    over_ranks: ClassVar[bool] = True

    def attach(self, module: SelfDistillModule[Any, Any]) -> None:
        super().attach(module)
        dim = module.student.backbone.dim
        self.mask_token = new_mask_token(dim)
        self.regressor = nn.Linear(dim, module.teaching_tower.backbone.dim)

    def terms(
        self, module: SelfDistillModule[Any, Any], views: Views, predictions: Any, targets: Any
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = in_micro_batches(partial(self._targets, module), views, module.micro_batch_size, "masked")
        predicted = self.regressor(encode_masked(module, views, self.mask_token, self.name))
        distance = (predicted - wanted).square().mean(-1)
        return {"masked_tokens": mean_where(distance, is_masked(views))}

    def _targets(self, module: SelfDistillModule[Any, Any], views: Views) -> Tensor:
        tokens = module.teaching_tower.backbone(masked_crops(views, self.name)).tokens
        assert tokens is not None
        patches = views.mask("mask").shape[-1]
        if tokens.shape[1] != patches:
            raise ValueError(
                f"objective.masked_tokens: {tokens.shape[1]} patches of the teacher given for {patches} of the "
                "student; choose a teacher with patches of the same size"
            )
        masked = tokens.flatten(0, 1).index_select(0, views.mask("masked"))
        return F.layer_norm(masked, masked.shape[-1:])
