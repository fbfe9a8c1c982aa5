"""DINO: the student says of every crop what its moving average says of the large ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from selfdistill.divergences import CrossEntropy, Divergence, as_divergence, fused_cross_entropy
from selfdistill.heads import DINOHead
from selfdistill.heads.mlp import Norm
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import LinearSchedule, Schedule, as_schedule
from selfdistill.targets import Center, sinkhorn
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

_WARM_UP = LinearSchedule(0.04, 0.07, "30 epochs")


class DINO(SelfDistillModule[Outputs, Outputs]):
    """Self-distillation with no labels (arXiv 2104.14294).

    ``L = mean over v ≠ g of −Σ_k p_g,k log p_v,k`` (equation 3), p_g = softmax((t_g − c)/τ_t) for the crops g that
    the teacher sees, p_v = softmax(s_v/τ_s) for all crops v; c ← m·c + (1 − m)·mean(t) (equation 4) after the
    step. ``centering="sinkhorn"`` takes p_g from Sinkhorn-Knopp at τ_t instead, over all these crops together
    (arXiv 2304.07193). Defaults are those for a ViT-S/16; drop path .1 is the backbone's to have.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width of what the prototypes see.
        prototypes: K, number of logits.
        head_norm: norm in the head; ``"batch"`` is an option of the paper for convolutional networks.
        norm_last_layer: keep the prototypes at length 1; False learns the length of each, which the paper does
            for ViT-S and calls unstable for larger ones.
        student_temperature: τ_s.
        teacher_temperature: τ_t; above .07 training is unstable.
        centering: what keeps one prototype from taking all.
        center_momentum: m.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        divergence: between s_v/τ_s and the sharpened target's logits; cross-entropy by default, which alone is
            computed without keeping ``[V, B, K]`` of probabilities. Its own temperatures multiply τ_s and τ_t.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``distill``).
        objectives: further losses.

    Raises:
        ValueError: an unknown centering, or a divergence made for features.
    """

    evaluates = "teacher"

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "vit_small_patch16_224",
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        prototypes: int = 65536,
        head_norm: Norm | None = None,
        norm_last_layer: bool = True,
        student_temperature: Schedule | float = 0.1,
        teacher_temperature: Schedule | float = _WARM_UP,
        centering: Literal["center", "sinkhorn"] = "center",
        center_momentum: float = 0.9,
        sinkhorn_iterations: int = 3,
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if centering not in ("center", "sinkhorn"):
            raise ValueError(f"method.centering: {centering!r} given, allowed is center or sinkhorn")
        divergence = as_divergence(divergence or CrossEntropy())
        if divergence.domain != "logits":
            raise ValueError(
                f"divergence: {type(divergence).__name__} given, which compares features; DINO compares logits of "
                "prototypes: choose cross_entropy, kl, kl_reverse or js"
            )
        backbone = as_backbone(backbone)
        head = DINOHead(
            backbone.dim,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            prototypes=prototypes,
            norm=head_norm,
            trainable_scale=not norm_last_layer,
        )
        recipe = OptimizerRecipe(
            "adamw",
            5e-4,
            weight_decay=0.04,
            weight_decay_end=0.4,
            scaling="linear",
            warmup="10 epochs",
            lr_end=1e-6,
            clip=3.0,
            clip_mode="parameter",
            freeze={"last_layer": "1 epochs"},
        )
        super().__init__(
            Tower(backbone, head),
            teacher=teacher or TeacherPolicy.ema(0.996, 1.0, mode="train"),
            optimizer=optimizer or recipe,
            weights=weights,
            objectives=objectives,
        )
        self.student_temperature = as_schedule(student_temperature)
        self.teacher_temperature = as_schedule(teacher_temperature)
        self.center = Center(prototypes, center_momentum) if centering == "center" else None
        self.sinkhorn_iterations = sinkhorn_iterations
        self.divergence = divergence
        self._last_layer = [p for n, p in self.student.head.named_parameters() if n.startswith("last_layer.")]

    def targets(self, views: Views) -> Outputs:
        features, logits = self.teaching_tower(views.teacher)
        return Outputs(logits, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        features, logits = self.student(views.student)
        return Outputs(logits, features.pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        sharpened = self._sharpen(targets.projections)
        temperature = self.student_temperature(self.clock)
        if isinstance(self.divergence, CrossEntropy):
            own = self.divergence.temperatures(self.clock)
            loss = fused_cross_entropy(
                predictions.projections,
                sharpened,
                student_temperature=temperature * own["student_temperature"],
                teacher_temperature=own["teacher_temperature"],
                pairs=predictions.pairs,
            )
        else:
            logits = predictions.projections.to(sharpened.dtype) / temperature
            scaled = replace(predictions, projections=logits), replace(targets, projections=sharpened)
            loss = self.compare(self.divergence, *scaled)
        return {"distill": loss}

    def observe(self, predictions: Outputs, targets: Outputs) -> None:
        if self.center is not None:
            self.center.observe(targets.projections)

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"last_layer": self._last_layer}

    def _sharpen(self, logits: Tensor) -> Tensor:
        """``[G, B, K]``, whose softmax is the target."""
        temperature = self.teacher_temperature(self.clock)
        if self.center is not None:
            return self.center(logits) / temperature
        codes = sinkhorn(logits.flatten(0, 1), epsilon=temperature, iterations=self.sinkhorn_iterations)
        # of a probability that underflowed the logarithm must stay a number
        return codes.clamp_min(torch.finfo(codes.dtype).tiny).log().view_as(logits)
