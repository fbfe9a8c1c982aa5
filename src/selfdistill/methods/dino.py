"""DINO: the student says of every crop what its moving average says of the large ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, cast

from torch import Tensor, nn

from selfdistill.compatibility import Accepts
from selfdistill.divergences import CrossEntropy, Divergence, fused_cross_entropy
from selfdistill.divergences.modules import as_temperature
from selfdistill.divergences.prototypes import prototype_cross_entropy
from selfdistill.heads import DINOHead, Prototypes
from selfdistill.heads.mlp import Norm
from selfdistill.methods.base import Answers, Outputs, SelfDistillModule
from selfdistill.methods.outputs import as_logits
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.objectives import Coupling
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import LinearSchedule, Schedule
from selfdistill.targets import Center, sinkhorn
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

_WARM_UP = LinearSchedule(0.04, 0.07, "30 epochs")
_ADAMW = OptimizerRecipe(
    "adamw", 5e-4, weight_decay=0.04, weight_decay_end=0.4, scaling="linear", warmup="10 epochs", lr_end=1e-6,
    clip=3.0, clip_mode="parameter", freeze={"last_layer": "1 epochs"},
)  # fmt: skip


class DINO(SelfDistillModule[Outputs, Outputs]):
    """Self-distillation with no labels (arXiv 2104.14294).

    ``L = mean over v ≠ g of −Σ_k p_gk log p_vk`` (equation 3): p_g = softmax((t_g − c)/τ_t) for the crops g of the
    teacher, p_v = softmax(s_v/τ_s) for all crops v of the student; c ← m·c + (1 − m)·mean(t) (equation 4) after
    each step. Defaults are those for ViT-S/16, but for its drop path of .1, which is the backbone's to have.

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width of what the prototypes see.
        prototypes: K, number of logits.
        head_norm: norm in the head; ``"batch"`` is the paper's option for convolutional networks.
        norm_last_layer: keep prototypes at length 1; False learns their lengths (the paper: for ViT-S only).
        student_temperature: τ_s.
        teacher_temperature: τ_t; unstable above .07.
        centering: ``center``, or ``sinkhorn``: p_g are Sinkhorn-Knopp codes of all t_g at τ_t (arXiv 2304.07193).
        center_momentum: m.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        logits: ``whole``, or ``chunks``: the student's logits exist a few rows at a time, in the loss, so that
            memory does not grow with images × crops × K. Needs cross-entropy, a teacher and prototypes of length 1.
            Further objectives then see what the prototypes see, in the place of logits.
        divergence: of s_v/τ_s from the logits of p_g. Cross-entropy, the default, is the one that keeps no
            ``[V, B, K]`` of probabilities. Its own temperatures multiply τ_s and τ_t.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``distill``).
        objectives: further losses.

    Raises:
        ValueError: an unknown centering, or a divergence made for features.
    """

    evaluates = "teacher"
    accepts = Accepts(divergences=("logits",))

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
        logits: Literal["whole", "chunks"] = "whole",
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if centering not in ("center", "sinkhorn"):
            raise ValueError(f"method.centering: {centering!r} given, allowed is center or sinkhorn")
        if logits not in ("whole", "chunks"):
            raise ValueError(f"method.logits: {logits!r} given, allowed is whole or chunks")
        backbone = as_backbone(backbone)
        head = DINOHead(
            backbone.dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim, prototypes=prototypes,
            norm=head_norm, trainable_scale=not norm_last_layer,
        )  # fmt: skip
        super().__init__(
            Tower(backbone, head),
            teacher=teacher or TeacherPolicy.ema(0.996, 1.0, mode="train"),
            optimizer=optimizer or _ADAMW,
            weights=weights,
            objectives=objectives,
            divergence=divergence or CrossEntropy(),
        )
        self.chunks = logits == "chunks"
        if self.chunks:
            if self.teacher is None or not norm_last_layer or not isinstance(self.divergence, CrossEntropy):
                raise ValueError(
                    "method.logits: chunks given, allowed with a teacher, norm_last_layer and divergence=cross_entropy "
                    "only; set method.logits=whole"
                )
            # the student's alone: the teacher is its own copy by now, and its logits are few
            cast(DINOHead, self.student.head).multiplies = False
        self.student_temperature = as_temperature("method.student_temperature", student_temperature)
        self.teacher_temperature = as_temperature("method.teacher_temperature", teacher_temperature)
        self.center = Center(prototypes, center_momentum) if centering == "center" else None
        self.sinkhorn_iterations = sinkhorn_iterations

    def targets(self, views: Views) -> Outputs:
        features, logits = self.teaching_tower(views.teacher)
        return Outputs(logits, features.pooled)

    def predictions(self, views: Views) -> Outputs:
        features, logits = self.student(views.student)
        return Outputs(logits, features.pooled, views.pairs)

    def terms(self, predictions: Outputs, targets: Outputs) -> dict[str, Tensor]:
        student, teacher = predictions.projections, self._sharpened(targets.projections)
        temperature = self.student_temperature(self.clock)
        if isinstance(self.divergence, CrossEntropy):
            own = self.divergence.temperatures(self.clock)
            own["student_temperature"] *= temperature
            if self.chunks:
                weight = self._last_layer.weight
                pairs = predictions.pairs
                return {
                    "distill": prototype_cross_entropy(student, weight, teacher, normalize=True, pairs=pairs, **own)
                }
            return {"distill": fused_cross_entropy(student, teacher, pairs=predictions.pairs, **own)}
        scaled = replace(predictions, projections=student.to(teacher.dtype) / temperature)
        return {"distill": self.compare(self.divergence, scaled, replace(targets, projections=teacher))}

    def observe(self, predictions: Outputs, targets: Outputs) -> None:
        if self.center is not None:
            self.center.observe(targets.projections)

    def answers(self, predictions: Outputs, targets: Outputs) -> Answers:
        student = predictions.projections.float()
        if self.chunks:
            student = self._last_layer(student)
        student = student / self.student_temperature(self.clock)
        return Answers(student, self._sharpened(targets.projections), predictions.pairs)

    def couples(self) -> dict[str, Coupling]:
        return {} if self.center is not None else {"distill": "Sinkhorn"}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"last_layer": list(self._last_layer.parameters())}

    @property
    def _last_layer(self) -> Prototypes:
        return cast(Prototypes, self.student.head.get_submodule("last_layer"))

    def _sharpened(self, logits: Tensor) -> Tensor:
        """``[G, B, K]``, whose softmax is the target."""
        temperature = self.teacher_temperature(self.clock)
        if self.center is not None:
            return self.center(logits) / temperature
        codes = sinkhorn(logits.flatten(0, 1), epsilon=temperature, iterations=self.sinkhorn_iterations)
        return as_logits(codes).view_as(logits)
