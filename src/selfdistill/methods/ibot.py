"""iBOT: the student says of a masked patch what its moving average, which sees it, says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.modules import as_temperature
from selfdistill.divergences.patches import patch_cross_entropy
from selfdistill.heads import ClassPatchHead, DINOHead
from selfdistill.heads.mlp import Norm
from selfdistill.methods.base import Answers, Outputs, SelfDistillModule
from selfdistill.methods.patches import PatchOutputs, check_same_view
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import LinearSchedule, Schedule
from selfdistill.targets import Center
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views
from selfdistill.views.micro_batches import Layout

_WARM_UP = LinearSchedule(0.04, 0.07, "30 epochs")
_ADAMW = OptimizerRecipe(
    "adamw", 5e-4, weight_decay=0.04, weight_decay_end=0.4, scaling="linear", warmup="10 epochs", lr_end=1e-6,
    clip=3.0, clip_mode="parameter", freeze={"last_layer": "1 epochs"},
)  # fmt: skip


@dataclass
class IBOTTargets(Outputs):
    """The teacher's logits: of class tokens, of masked patches ``[M, K]``, and means over all patches ``[G·B, K]``."""

    layouts: ClassVar[Mapping[str, Layout]] = {"patches": "masked", "patch_means": "images"}

    patches: Tensor = field(kw_only=True)
    patch_means: Tensor = field(kw_only=True)


class IBOT(SelfDistillModule[PatchOutputs, IBOTTargets]):
    """Image BERT pre-training with an online tokenizer (arXiv 2111.07832).

    ``L = L_cls + L_patch``. L_cls is DINO's: mean over crops v ≠ g of ``−Σ_k p_gk log p_vk``, where the student's
    large crops are masked and the teacher's are not. L_patch (equation 2) is the same cross-entropy between the
    teacher's and the student's masked patch of one crop: mean over an image's masked patches, then over all images,
    those without masks counting as 0. Each has a center of its own: of class tokens, and of all patches, masked or
    not. Defaults are those for ViT-S/16, but for its drop path of .1, which is the backbone's to have.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``; a vision transformer.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width of what the prototypes see.
        prototypes: K, number of logits.
        patch_prototypes: K of a second head, for the patches; None is one head for both.
        head_norm: norm in the head.
        norm_last_layer: keep prototypes at length 1; False learns their lengths.
        student_temperature: τ_s.
        teacher_temperature: τ_t of class tokens.
        patch_temperature: τ_t of patches.
        center_momentum: m of both centers.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``cls``, ``patch``).
        objectives: further losses.

    Raises:
        ValueError: a backbone without patch tokens.
    """

    evaluates = "teacher"
    accepts = Accepts(tokens=True, masks=("mask",))

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "vit_small_patch16_224",
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        prototypes: int = 8192,
        patch_prototypes: int | None = None,
        head_norm: Norm | None = None,
        norm_last_layer: bool = True,
        student_temperature: Schedule | float = 0.1,
        teacher_temperature: Schedule | float = _WARM_UP,
        patch_temperature: Schedule | float = _WARM_UP,
        center_momentum: float = 0.9,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        backbone = as_backbone(backbone)
        counts = [prototypes] if patch_prototypes is None else [prototypes, patch_prototypes]
        heads = [
            DINOHead(backbone.dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim, prototypes=count,
                     norm=head_norm, trainable_scale=not norm_last_layer)
            for count in counts
        ]  # fmt: skip
        super().__init__(
            Tower(backbone, ClassPatchHead(*heads)),
            teacher=teacher or TeacherPolicy.ema(0.996, 1.0, mode="train"),
            optimizer=optimizer or _ADAMW,
            weights=weights,
            objectives=objectives,
        )
        self.mask_token = nn.Parameter(torch.zeros(backbone.dim))
        self.student_temperature = as_temperature("method.student_temperature", student_temperature)
        self.teacher_temperature = as_temperature("method.teacher_temperature", teacher_temperature)
        self.patch_temperature = as_temperature("method.patch_temperature", patch_temperature)
        self.center = Center(counts[0], center_momentum)
        self.patch_center = Center(counts[-1], center_momentum)

    def targets(self, views: Views) -> IBOTTargets:
        mask, masked = views.mask("mask"), views.mask("masked")
        check_same_view(views, len(mask))
        # the center asks for all patches
        features, (logits, patches) = self.teaching_tower(
            views.teacher, select=torch.arange(mask.numel(), device=mask.device)
        )
        means = patches.view(-1, mask.shape[-1], patches.shape[-1]).mean(1)
        return IBOTTargets(logits, features.pooled, patches=patches.index_select(0, masked), patch_means=means)

    def predictions(self, views: Views) -> PatchOutputs:
        features, (logits, patches) = self.student(
            views.student, mask=views.student_masks, mask_token=self.mask_token, select=views.mask("masked")
        )
        return PatchOutputs(logits, features.pooled, views.pairs, patches=patches, weight=views.mask("masked_weight"))

    def terms(self, predictions: PatchOutputs, targets: IBOTTargets) -> dict[str, Tensor]:
        student_temperature = self.student_temperature(self.clock)
        cls = fused_cross_entropy(
            predictions.projections,
            self.center(targets.projections),
            pairs=predictions.pairs,
            student_temperature=student_temperature,
            teacher_temperature=self.teacher_temperature(self.clock),
        )
        patch = patch_cross_entropy(
            predictions.patches,
            self.patch_center(targets.patches),
            predictions.weight,
            len(targets.patch_means),
            student_temperature=student_temperature,
            teacher_temperature=self.patch_temperature(self.clock),
        )
        return {"cls": cls, "patch": patch}

    def observe(self, predictions: PatchOutputs, targets: IBOTTargets) -> None:
        self.center.observe(targets.projections)
        # every image has as many patches: the mean of the means is that of all
        self.patch_center.observe(targets.patch_means)

    def answers(self, predictions: PatchOutputs, targets: IBOTTargets) -> Answers:
        student = predictions.projections.float() / self.student_temperature(self.clock)
        teacher = self.center(targets.projections) / self.teacher_temperature(self.clock)
        return Answers(student, teacher, predictions.pairs)

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        last = [p for n, p in self.student.head.named_parameters() if "last_layer" in n.split(".")]
        return {"last_layer": last}
