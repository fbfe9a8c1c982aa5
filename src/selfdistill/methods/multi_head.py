"""Several heads on one backbone, each held against the teacher's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from selfdistill.divergences import L2, Divergence, as_divergence
from selfdistill.heads import MLP
from selfdistill.methods.base import Outputs, SelfDistillModule
from selfdistill.networks import Backbone, Tower, as_backbone
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Schedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views


@dataclass(frozen=True)
class Head:
    """One head of :class:`MultiHead`; None stands for the method's own setting, or for no restriction.

    Attributes:
        out_dim: width of its projections.
        hidden_dim: width of its hidden layer.
        divergence: of the student's projections from the teacher's.
        weight: w_h.
        layer: the block or stage whose output, averaged over positions, it projects in place of the features;
            negative ones count from the end.
        view: the only view of the student that it compares, counted from 0.
    """

    out_dim: int | None = None
    hidden_dim: int | None = None
    divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None
    weight: Schedule | float = 1.0
    layer: int | None = None
    view: int | None = None


@dataclass
class HeadOutputs(Outputs):
    """``heads`` has the projections of each head, ``projections`` those of the first."""

    heads: tuple[Tensor, ...] = ()


class MultiHead(SelfDistillModule[HeadOutputs, HeadOutputs]):
    """``L = Σ_h w_h·D_h(f_s^h(x), f_t^h(x))``: H heads, the teacher has its average of each.

    Each is EMATeacher's projector, and a single one is EMATeacher. With heads on earlier layers every depth is
    distilled (deep self-distillation; arXiv 1905.08094 takes the last layer for a teacher instead).

    Args:
        backbone: a timm name, a :class:`Backbone` or any ``nn.Module``.
        heads: how many, or the settings of each; one at least projects the features themselves, or the last
            layers would have no gradient.
        hidden_dim: width of the hidden layers.
        out_dim: P, width of the projections.
        compare: ``crossed`` or ``same`` views, as in EMATeacher.
        divergence: D ``[N, P], [N, P] -> [N]``.
        teacher: the teacher's policy.
        optimizer: the recipe.
        weights: of the terms (``head_1``, …); they replace those of ``heads``.
        objectives: further losses.

    Raises:
        ValueError: no head on the features, or a setting out of range.
    """

    evaluates = "teacher"

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = "resnet50",
        *,
        heads: int | Sequence[Head] = 3,
        hidden_dim: int = 2048,
        out_dim: int = 256,
        compare: Literal["crossed", "same"] = "crossed",
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher: TeacherPolicy | None = None,
        optimizer: OptimizerRecipe | None = None,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        heads = [Head()] * heads if isinstance(heads, int) else list(heads)
        if all(head.layer is not None for head in heads):
            raise ValueError(f"method.heads: {heads} given, allowed are one or more, one of them with layer=null")
        if compare not in ("crossed", "same"):
            raise ValueError(f"method.compare: {compare!r} given, allowed is crossed or same")
        backbone = as_backbone(backbone)
        super().__init__(
            Tower(backbone, _Heads(backbone, heads, hidden_dim, out_dim)),
            teacher=teacher or TeacherPolicy.ema(0.999, shape="constant", running_mean=True, mode="train"),
            optimizer=optimizer or OptimizerRecipe("adamw", 1e-3, weight_decay=0.05, warmup="5 epochs"),
            weights={f"head_{h}": head.weight for h, head in enumerate(heads, 1)} | dict(weights or {}),
            objectives=objectives,
        )
        self.same_view = compare == "same"
        common = as_divergence(divergence or L2())
        self.divergences = nn.ModuleList(as_divergence(head.divergence or common) for head in heads)
        self.layers = tuple(head.layer for head in heads if head.layer is not None)
        self.views = tuple(head.view for head in heads)

    def targets(self, views: Views) -> HeadOutputs:
        features, projections = self.teaching_tower(views.teacher, layers=self.layers)
        return HeadOutputs(projections[0], features.pooled, heads=tuple(projections))

    def predictions(self, views: Views) -> HeadOutputs:
        features, projections = self.student(views.student, layers=self.layers)
        pairs = views.same if self.same_view else views.pairs
        return HeadOutputs(projections[0], features.pooled, pairs, tuple(projections))

    def terms(self, predictions: HeadOutputs, targets: HeadOutputs) -> dict[str, Tensor]:
        terms = {}
        for h, (divergence, view) in enumerate(zip(self.divergences, self.views, strict=True)):
            pairs = tuple(pair for pair in predictions.pairs if view in (None, pair[0]))
            assert isinstance(divergence, Divergence)
            student = Outputs(predictions.heads[h], predictions.features, pairs)
            teacher = Outputs(targets.heads[h], targets.features)
            terms[f"head_{h + 1}"] = self.compare(divergence, student, teacher)
        return terms


class _Heads(nn.Module):
    """The projections of all heads, from the features and the layers that those on layers ask for, in order."""

    def __init__(self, backbone: Backbone, heads: Sequence[Head], hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = heads[0].out_dim or out_dim  # of the first: what `HeadOutputs.projections` holds
        self.on_layers = tuple(head.layer is not None for head in heads)
        self.heads = nn.ModuleList(
            MLP(
                backbone.dim if head.layer is None else backbone.layer_dims([head.layer])[0],
                head.hidden_dim or hidden_dim,
                head.out_dim or out_dim,
                output_bias=False,
                output_norm="batch",
            )
            for head in heads
        )

    def forward(self, pooled: Tensor, *layers: Tensor) -> list[Tensor]:
        if len(layers) != sum(self.on_layers):
            raise ValueError(f"layers: {len(layers)} given, allowed are {sum(self.on_layers)}: one a head on a layer")
        remaining = iter(layers)
        inputs = [next(remaining).mean(-2) if deep else pooled for deep in self.on_layers]
        return [head(x) for head, x in zip(self.heads, inputs, strict=True)]
