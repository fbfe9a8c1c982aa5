"""I-JEPA: from one part of an image the student predicts what its moving average sees in others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences import Divergence, SmoothL1
from selfdistill.heads import LatentPredictor, NoHead
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.methods.patches import check_same_view
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.objectives import Coupling
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Schedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views
from selfdistill.views.micro_batches import Layout

_ADAMW = OptimizerRecipe(
    "adamw", 1e-3, weight_decay=0.04, weight_decay_end=0.4, warmup="40 epochs", lr_start=2e-4, lr_end=1e-6
)


@dataclass
class BlockOutputs(Outputs):
    """``projections`` are of the patches of target blocks, ``[G·B, T, Nt, D]``."""

    layouts: ClassVar[Mapping[str, Layout]] = {"projections": "images"}


class IJEPA(SelfDistillModule[BlockOutputs, BlockOutputs]):
    """Image joint-embedding predictive architecture (arXiv 2301.08243).

    ``L = mean over patches j of the target blocks of D(g(f_s(x_context), m_j), LN(f_t(x))_j)``: f_s encodes the
    patches of the context alone, g is a narrow transformer that is told the positions m_j, f_t sees the whole image;
    LN has no parameters. The paper writes D as a squared distance, its code has smooth L1 (β = 1), as here by
    default. What is evaluated is the mean of the patch tokens. Defaults are those for ViT-H/14.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``; a vision transformer.
        image_size: height and width of the view in pixels, for the positions.
        predictor_width: features inside g.
        predictor_depth: its blocks.
        predictor_heads: its attention heads.
        divergence: D between features ``[N, D]``; the paper's by default.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``latent``).
        objectives: further losses.

    Raises:
        ValueError: a backbone without patch tokens.
    """

    evaluates = "teacher"
    accepts = Accepts(tokens=True, masks=("context", "targets"), projects=False)

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "vit_huge_patch14_gap_224",
        *,
        image_size: int | Sequence[int] = 224,
        predictor_width: int = 384,
        predictor_depth: int = 12,
        predictor_heads: int = 12,
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        super().__init__(
            Tower(backbone, NoHead()),
            teacher=teacher or TeacherPolicy.ema(0.996, 1.0, shape="linear", mode="train"),
            optimizer=optimizer or _ADAMW,
            weights=weights,
            objectives=objectives,
            divergence=divergence or SmoothL1(),
        )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.predictor = LatentPredictor(
            backbone.dim,
            backbone.grid((height, width)),
            width=predictor_width,
            depth=predictor_depth,
            heads=predictor_heads,
        )

    def targets(self, views: Views) -> BlockOutputs:
        wanted = views.mask("targets")
        check_same_view(views, len(wanted) // views.batch_size)
        features, _ = self.teaching_tower(views.teacher)
        assert features.tokens is not None
        tokens = features.tokens.flatten(0, 1)
        positions = wanted.flatten(1)[..., None].expand(-1, -1, tokens.shape[-1])
        normal = F.layer_norm(tokens.float(), tokens.shape[-1:])
        return BlockOutputs(normal.gather(1, positions).unflatten(1, wanted.shape[1:]), features.tokens.mean(2))

    def predictions(self, views: Views) -> BlockOutputs:
        context = views.mask("context")
        features, _ = self.student(views.student, keep=context)
        assert features.tokens is not None
        predicted = self.predictor(features.tokens.flatten(0, 1), context, views.mask("targets"))
        return BlockOutputs(predicted, features.tokens.mean(2), views.same)

    def terms(self, predictions: BlockOutputs, targets: BlockOutputs) -> dict[str, Tensor]:
        return {"latent": self.divergence(predictions.projections, targets.projections, self.clock).mean()}

    def couples(self) -> dict[str, Coupling]:
        return {"latent": "numbers of masked patches"}

    def embed(self, images: Tensor) -> Tensor:
        tokens = self.evaluated_tower.backbone(images).tokens
        assert tokens is not None
        return tokens.mean(1)

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"predictor": list(self.predictor.parameters())}
