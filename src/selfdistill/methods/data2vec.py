"""data2vec: the student predicts, at masked patches, what the last layers of its moving average hold there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences import Divergence, SmoothL1
from selfdistill.heads import MLP, NoHead
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.methods.patches import check_same_view
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.objectives import Coupling
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Schedule
from selfdistill.targets import average_layers
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views
from selfdistill.views.micro_batches import Layout

_ADAMW = OptimizerRecipe("adamw", 2e-3, weight_decay=0.05, warmup="10 epochs", clip=3.0)


@dataclass
class MaskedOutputs(Outputs):
    """``projections`` are of masked patches, ``[M, D]``."""

    layouts: ClassVar[Mapping[str, Layout]] = {"projections": "masked"}


class Data2Vec(SelfDistillModule[MaskedOutputs, MaskedOutputs]):
    """data2vec on images (arXiv 2202.03555).

    ``L = mean over masked patches of D(r(f_s(x_masked)), y)``, ``y = LN(1/K Σ_l a_l)`` (equations 2 and 3): a_l the
    outputs of the teacher's last K blocks on the whole image, LN without parameters, r a linear regressor that only
    the student has. D is smooth L1 (β = 2), averaged over features as in the authors' code for images; their code
    for all modalities sums them and divides by √D. The token in the place of masked patches is learned. What is
    evaluated is the mean of the patch tokens, which is what the authors fine-tune. Defaults are those for ViT-B/16,
    but for its drop path of .25, which is the backbone's to have.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``; a vision transformer.
        top_k: K.
        divergence: D between features ``[M, D]``; the paper's by default.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``latent``).
        objectives: further losses.

    Raises:
        ValueError: a backbone without patch tokens, or with fewer than K blocks.
    """

    evaluates = "teacher"
    accepts = Accepts(tokens=True, masks=("mask",), projects=False)

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "vit_base_patch16_224",
        *,
        top_k: int = 6,
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        super().__init__(
            Tower(backbone, NoHead()),
            teacher=teacher or TeacherPolicy.ema(0.999, 0.9998, shape="linear"),
            optimizer=optimizer or _ADAMW,
            weights=weights,
            objectives=objectives,
            divergence=divergence or SmoothL1(beta=2.0),
        )
        if not 1 <= top_k <= backbone.depth:
            raise ValueError(f"method.top_k: {top_k} given, allowed is 1 to the backbone's {backbone.depth} blocks")
        self.regressor = MLP(backbone.dim, backbone.dim, backbone.dim, layers=1, init_std=0.02)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(backbone.dim), std=0.02))
        self.layers = range(backbone.depth - top_k, backbone.depth)

    def targets(self, views: Views) -> MaskedOutputs:
        check_same_view(views, len(views.mask("mask")))
        features, _ = self.teaching_tower(views.teacher, layers=self.layers)
        layers = [layer.flatten(0, 1) for layer in features.layers]
        wanted = average_layers(layers, top_k=len(layers), norm=None, post_norm=True)
        assert features.tokens is not None
        return MaskedOutputs(wanted.flatten(0, 1).index_select(0, views.mask("masked")), features.tokens.mean(2))

    def predictions(self, views: Views) -> MaskedOutputs:
        features, _ = self.student(views.student, mask=views.student_masks, mask_token=self.mask_token)
        assert features.tokens is not None
        masked = features.tokens.flatten(0, 2).index_select(0, views.mask("masked"))
        return MaskedOutputs(self.regressor(masked), features.tokens.mean(2), views.same)

    def terms(self, predictions: MaskedOutputs, targets: MaskedOutputs) -> dict[str, Tensor]:
        return {"latent": self.divergence(predictions.projections, targets.projections, self.clock).mean()}

    def couples(self) -> dict[str, Coupling]:
        return {"latent": "numbers of masked patches"}

    def embed(self, images: Tensor) -> Tensor:
        tokens = self.evaluated_tower.backbone(images).tokens
        assert tokens is not None
        return tokens.mean(1)

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"predictor": list(self.regressor.parameters())}
