"""DINOv2: DINO on class tokens, iBOT on masked patches, and features kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.modules import as_temperature
from selfdistill.divergences.patches import patch_cross_entropy
from selfdistill.heads import ClassPatchHead, DINOHead
from selfdistill.heads.mlp import Norm
from selfdistill.methods.base import Answers, SelfDistillModule
from selfdistill.methods.outputs import as_logits
from selfdistill.methods.patches import PatchOutputs, check_same_view
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.objectives import Coupling
from selfdistill.optim import OptimizerRecipe
from selfdistill.regularizers import koleo
from selfdistill.schedules import LinearSchedule, Schedule
from selfdistill.targets import Center, sinkhorn
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

_WARM_UP = LinearSchedule(0.04, 0.07, "30 epochs")
_ADAMW = OptimizerRecipe(
    "adamw", 4e-3, weight_decay=0.04, weight_decay_end=0.4, scaling="sqrt", reference_batch=1024, warmup="10 epochs",
    lr_end=1e-6, layer_decay=0.9, lr_multipliers={"patch_embed": 0.2}, clip=3.0, clip_mode="module",
    freeze={"last_layer": "1 epochs"},
)  # fmt: skip


class DINOv2(SelfDistillModule[PatchOutputs, PatchOutputs]):
    """DINOv2 (arXiv 2304.07193).

    ``L = L_cls + L_patch + 0.1·Σ_g KoLeo(x_g)``: L_cls and L_patch as in :class:`IBOT`, x_g the features of the
    student's large crop g before the head. The cross-entropies are the mean over crops v ≠ g (which is how the
    published weights of large and local crops come out), and the mean over images of the mean over masked patches.
    Targets are centered, by the mean of class tokens and of masked patches, or Sinkhorn-Knopp codes of each.
    Defaults are those for ViT-L/16 on ImageNet-1k, but for its drop path of .3, which is the backbone's to have.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``; a vision transformer.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width of what the prototypes see.
        prototypes: K, number of logits.
        patch_prototypes: K of a second head, for the patches; None is one head for both.
        head_norm: norm in the head.
        norm_last_layer: keep prototypes at length 1; False learns their lengths.
        student_temperature: τ_s.
        teacher_temperature: τ_t.
        centering: ``center`` or ``sinkhorn``, at τ_t.
        center_momentum: of both centers.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``cls``, ``patch``, ``koleo``); that of ``koleo`` is 0.1 where not given.
        objectives: further losses.

    Raises:
        ValueError: an unknown centering, or a backbone without patch tokens.
    """

    evaluates = "teacher"
    accepts = Accepts(tokens=True, masks=("mask",), has=("koleo",))

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "vit_large_patch16_224",
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        prototypes: int = 65536,
        patch_prototypes: int | None = None,
        head_norm: Norm | None = None,
        norm_last_layer: bool = False,
        student_temperature: Schedule | float = 0.1,
        teacher_temperature: Schedule | float = _WARM_UP,
        centering: Literal["center", "sinkhorn"] = "center",
        center_momentum: float = 0.9,
        sinkhorn_iterations: int = 3,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if centering not in ("center", "sinkhorn"):
            raise ValueError(f"method.centering: {centering!r} given, allowed is center or sinkhorn")
        backbone = as_backbone(backbone)
        counts = [prototypes] if patch_prototypes is None else [prototypes, patch_prototypes]
        heads = [
            DINOHead(backbone.dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim, prototypes=count,
                     norm=head_norm, trainable_scale=not norm_last_layer)
            for count in counts
        ]  # fmt: skip
        super().__init__(
            Tower(backbone, ClassPatchHead(*heads)),
            teacher=teacher or TeacherPolicy.ema(0.992, 1.0),
            optimizer=optimizer or _ADAMW,
            weights={"koleo": 0.1, **(weights or {})},
            objectives=objectives,
        )
        self.mask_token = nn.Parameter(torch.zeros(backbone.dim))
        self.student_temperature = as_temperature("method.student_temperature", student_temperature)
        self.teacher_temperature = as_temperature("method.teacher_temperature", teacher_temperature)
        centered = centering == "center"
        self.center = Center(counts[0], center_momentum) if centered else None
        self.patch_center = Center(counts[-1], center_momentum) if centered else None
        self.sinkhorn_iterations = sinkhorn_iterations

    def targets(self, views: Views) -> PatchOutputs:
        check_same_view(views, len(views.mask("mask")))
        features, (logits, patches) = self.teaching_tower(views.teacher, select=views.mask("masked"))
        return PatchOutputs(logits, features.pooled, patches=patches, weight=views.mask("masked_weight"))

    def predictions(self, views: Views) -> PatchOutputs:
        features, (logits, patches) = self.student(
            views.student, mask=views.student_masks, mask_token=self.mask_token, select=views.mask("masked")
        )
        return PatchOutputs(logits, features.pooled, views.pairs, patches=patches, weight=views.mask("masked_weight"))

    def terms(self, predictions: PatchOutputs, targets: PatchOutputs) -> dict[str, Tensor]:
        crops, batch = targets.projections.shape[:2]
        temperature = self.student_temperature(self.clock)
        cls, cls_temperature = self._sharpened(targets.projections, self.center)
        patch, patch_temperature = self._sharpened(targets.patches, self.patch_center)
        return {
            "cls": fused_cross_entropy(
                predictions.projections,
                cls,
                pairs=predictions.pairs,
                student_temperature=temperature,
                teacher_temperature=cls_temperature,
            ),
            "patch": patch_cross_entropy(
                predictions.patches,
                patch,
                targets.weight,
                crops * batch,
                student_temperature=temperature,
                teacher_temperature=patch_temperature,
            ),
            "koleo": torch.stack([koleo(x) for x in predictions.features[:crops]]).sum(),
        }

    def observe(self, predictions: PatchOutputs, targets: PatchOutputs) -> None:
        if self.center is not None and self.patch_center is not None:
            self.center.observe(targets.projections)
            self.patch_center.observe(targets.patches)

    def answers(self, predictions: PatchOutputs, targets: PatchOutputs) -> Answers:
        student = predictions.projections.float() / self.student_temperature(self.clock)
        wanted, temperature = self._sharpened(targets.projections, self.center)
        teacher = as_logits(wanted) if temperature is None else wanted / temperature
        return Answers(student, teacher, predictions.pairs)

    def couples(self) -> dict[str, Coupling]:
        balanced: dict[str, Coupling] = {} if self.center is not None else {"cls": "Sinkhorn", "patch": "Sinkhorn"}
        return {**balanced, "koleo": "KoLeo"}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        names = {"last_layer": self.student.head, "patch_embed": self.student.backbone}
        return {
            role: [p for n, p in module.named_parameters() if role in n.split(".")] for role, module in names.items()
        }

    def _sharpened(self, logits: Tensor, center: Center | None) -> tuple[Tensor, float | None]:
        """Centered logits and their temperature, or Sinkhorn codes of all rows and None."""
        temperature = self.teacher_temperature(self.clock)
        if center is not None:
            return center(logits), temperature
        rows = logits.reshape(-1, logits.shape[-1])
        return sinkhorn(rows, epsilon=temperature, iterations=self.sinkhorn_iterations).view_as(logits), None
