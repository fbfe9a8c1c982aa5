"""What :class:`CollapseMonitor` measures: from what a training step returned to named numbers.

Shapes: V crops, B images, D features, P projections, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.distributed import all_gather_cat, all_reduce_sum, world_size
from selfdistill.evaluation.geometry import (
    alignment,
    effective_rank,
    feature_std,
    kl_and_entropy,
    mean_cosine,
    output_agreement,
    parameter_distance,
    prototype_entropy,
    rankme,
    uniformity,
)
from selfdistill.methods.outputs import Outputs
from selfdistill.sharding import local, norms, over_shards
from selfdistill.views import Views

Measures = dict[str, float]


@torch.no_grad()
def measure(
    module: nn.Module, outputs: Any, batch: Any, features: Tensor, *, rows: int, extra: dict[str, Tensor]
) -> Measures:
    """All measures that this module and step have, the same on all ranks.

    Args:
        module: the module that was trained.
        outputs: of its training step.
        batch: of its training step.
        features: ``[V, B, D]`` or ``[N, D]``, see :func:`evaluated_features`.
        rows: most images times crops, over all ranks, that the geometry is computed from.
        extra: measures taken elsewhere; averaged over ranks with the others.
    """
    share = max(rows // world_size(), 2)
    features = _thinned(features, share)
    values = dict(extra)
    gathered = _gathered(features)
    values["std"] = feature_std(gathered)
    values["rank"] = effective_rank(gathered)
    values["rank_ratio"] = values["rank"] / min(len(gathered) - 1, gathered.shape[1])
    values["rankme"] = rankme(gathered)
    values["cosine"] = mean_cosine(gathered)
    values["uniformity"] = uniformity(gathered)
    sides = outputs if isinstance(outputs, dict) else {}
    student, teacher = sides.get("student"), sides.get("teacher")
    projections = getattr(student, "projections", None)
    if isinstance(projections, Tensor) and projections.ndim >= 2:
        projections = _gathered(_thinned(projections, share))
        values["projection_std"] = feature_std(projections)
        values["projection_rank"] = effective_rank(projections)
    positives = _positives(features, student, teacher, share)
    if positives is not None:
        values["alignment"] = alignment(*positives)
    same = _same_images(student, teacher, batch, share)
    if same is not None:
        values["agreement"] = output_agreement(*same)
    values |= _teacher_distance(module)
    values |= _answers(module, student, teacher, share)
    return _averaged(values, features.device)


def evaluated_features(module: nn.Module, outputs: Any) -> Tensor | None:
    """``[V, B, D]``: features of the network that the method evaluates; None where the step returned none."""
    if not isinstance(outputs, dict):
        return None
    for side in (getattr(module, "evaluates", "student"), "student"):
        features = getattr(outputs.get(side), "features", None)
        if isinstance(features, Tensor) and features.ndim in (2, 3):
            return features
    return None


class GradientSignal:
    """How much of a step's gradient is signal: the cosine of the gradients of two steps in a row.

    With g = G + noise, independent from step to step, E⟨g, g'⟩ = ‖G‖² and E‖g‖² = ‖G‖² + noise: their ratio is
    the share of the gradient's energy that the mean gradient has. One copy of the gradient is kept, and only
    from the step before a measurement to the measurement.
    """

    def __init__(self) -> None:
        self._previous: list[Tensor] | None = None
        self.measures: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, parameters: Iterable[nn.Parameter], *, keep: bool, compare: bool) -> None:
        """Look at the gradients before the optimizer takes them.

        Args:
            parameters: those that are trained.
            keep: the next step compares with this one.
            compare: measure, without waiting for the device.
        """
        trained = [p.grad for p in parameters if p.grad is not None]
        gradients = [local(gradient) for gradient in trained]
        if compare and gradients:
            norm = torch.linalg.vector_norm(norms(trained).float())
            self.measures = {"gradient_norm": norm}
            before = self._previous
            if before is not None and [g.shape for g in before] == [g.shape for g in gradients]:
                products = torch.stack([x.sum() for x in torch._foreach_mul(before, gradients)]).float()
                products = over_shards(products, trained).sum()
                other = torch.linalg.vector_norm(norms(trained, held=before).float())
                self.measures["gradient_signal"] = products / (norm * other).clamp_min(torch.finfo(torch.float32).tiny)
        self._previous = [g.clone() for g in gradients] if keep else None


def _thinned(x: Tensor, rows: int) -> Tensor:
    """At most ``rows`` rows: the same first images of every crop of ``[V, B, D]``, evenly spaced rows of ``[N, D]``."""
    if x.ndim == 3:
        return x[:, : max(rows // len(x), 1)]
    x = x.flatten(0, -2)
    return x[:: math.ceil(len(x) / rows)]


def _gathered(x: Tensor) -> Tensor:
    return all_gather_cat(x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32)))


def _positives(features: Tensor, student: Any, teacher: Any, rows: int) -> tuple[Tensor, Tensor] | None:
    """Two views of the same images: two crops of one side, else a crop of either side."""
    if features.ndim != 3:
        return None
    if len(features) > 1:
        return features[0], features[1]
    pairs = getattr(student, "pairs", ())
    one, other = getattr(student, "features", None), getattr(teacher, "features", None)
    return _slots(one, other, pairs[:1], rows)


def _same_images(student: Any, teacher: Any, batch: Any, rows: int) -> tuple[Tensor, Tensor] | None:
    """Features of both networks for the same crops where there are such, else for crops of the same images."""
    one, other = getattr(student, "features", None), getattr(teacher, "features", None)
    pairs = (batch.same if isinstance(batch, Views) else ()) or getattr(student, "pairs", ())
    return _slots(one, other, pairs, rows)


def _slots(one: Any, other: Any, pairs: tuple[tuple[int, int], ...], rows: int) -> tuple[Tensor, Tensor] | None:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.ndim != 3 or other.ndim != 3 or not pairs:
        return None
    if one.shape[1:] != other.shape[1:]:
        return None
    images = max(rows // len(pairs), 1)
    x = torch.cat([one[s, :images] for s, _ in pairs])
    return x, torch.cat([other[t, :images] for _, t in pairs])


def _teacher_distance(module: nn.Module) -> dict[str, Tensor]:
    teacher, student = getattr(module, "teacher", None), getattr(module, "student", None)
    if not isinstance(teacher, nn.Module) or not isinstance(student, nn.Module):
        return {}
    pair = list(teacher.parameters()), list(student.parameters())
    if not pair[0] or [p.shape for p in pair[0]] != [p.shape for p in pair[1]]:
        return {}
    return {"teacher_distance": parameter_distance(*pair)}


def _answers(module: nn.Module, student: Any, teacher: Any, rows: int) -> dict[str, Tensor]:
    """Entropies as shares of ln K, and the cross-entropy taken apart, in nats."""
    ask = getattr(module, "answers", None)
    if not callable(ask) or not isinstance(student, Outputs):
        return {}
    slots = max(len(side.projections) for side in (student, teacher) if side is not None)
    images = max(rows // slots, 1)
    found = ask(_first(student, images), None if teacher is None else _first(teacher, images))
    if found is None:
        return {}
    values: dict[str, Tensor] = {}
    for name, logits in (("prototype", found.student), ("target", found.teacher)):
        # averaged over ranks, not of the mean over ranks: enough to tell 0 from 1
        usage = prototype_entropy(logits)
        full = math.log(logits.shape[-1])
        values[f"{name}_entropy"] = usage.mean_entropy / full
        values[f"{name}_sharpness"] = 1 - usage.entropy_mean / full
        values[f"{name}_information"] = (usage.mean_entropy - usage.entropy_mean) / full
    if found.pairs:
        s = torch.stack([found.student[s] for s, _ in found.pairs])
        parts = kl_and_entropy(torch.stack([found.teacher[t] for _, t in found.pairs]), s)
        values |= {"kl": parts.kl, "target_entropy_nats": parts.entropy}
    return values


def _first(side: Outputs, images: int) -> Outputs:
    """``side`` for its first images only."""
    cut: dict[str, Any] = {
        f.name: value[:, :images]
        for f in fields(side)
        if isinstance(value := getattr(side, f.name), Tensor) and value.shape[:2] == side.features.shape[:2]
    }
    return replace(side, **cut)


def _averaged(values: dict[str, Tensor], device: torch.device) -> Measures:
    """Mean over ranks, on the host: the only place where the monitor waits for the device."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    stacked = torch.stack([value.detach().to(device, dtype) for value in values.values()])
    return dict(zip(values, (all_reduce_sum(stacked) / world_size()).tolist(), strict=True))
