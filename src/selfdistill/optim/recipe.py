"""One recipe for what steps: optimizer, parameter groups, their rates over time, clipping and freezing.

The recipe is a value: it holds no parameters and no state. What differs between parameters is written into
the groups of the optimizer as plain numbers, so that it is in every checkpoint and comes back with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from selfdistill.optim.checks import check_roles, check_values
from selfdistill.optim.clipping import clip_gradients
from selfdistill.optim.groups import NamedParameters, kind_of, layer_factors, without_repeats
from selfdistill.optim.lars import Lars
from selfdistill.schedules import (
    Clock,
    ConstantSchedule,
    CosineSchedule,
    Duration,
    LinearSchedule,
    Schedule,
    WarmupSchedule,
    duration_in_steps,
)

Roles: TypeAlias = Mapping[str, Iterable[nn.Parameter]]


@dataclass(frozen=True, eq=False)
class OptimizerRecipe:
    """How a run is optimised: build an optimizer, then set its rates before every step.

    Args:
        name: ``adamw``, ``sgd`` (momentum), ``lars`` (:class:`~selfdistill.optim.Lars`), or a function from
            parameter groups to any optimizer, e.g. ``partial(torch.optim.RMSprop, lr=0.01)``.
        lr: peak learning rate, before ``scaling``. None with a function for ``name``: the rates and weight
            decays that its groups have are then the peaks.
        weight_decay: λ, of every parameter that ``decay_exclude`` does not name.
        weight_decay_end: λ at the end of the run, reached along a cosine; None keeps λ (DINO: .04 → .4).
        betas: of adamw.
        momentum: of sgd and lars.
        schedule: course of the learning rate after the warm-up, ``cosine``, ``linear`` or ``constant``.
        warmup: length of the linear warm-up.
        lr_start: learning rate at step 0 of the warm-up; like ``lr_end`` not scaled by the batch.
        lr_end: learning rate at the end of the run (``constant`` does not use it).
        scaling: peak rate for a global batch of B: ``none`` lr, ``linear`` lr·B/``reference_batch``,
            ``sqrt`` lr·√(B/``reference_batch``).
        reference_batch: the batch that ``lr`` is meant for.
        layer_decay: d of the layer-wise rates lr·d^(L+1−l) of a backbone with L blocks: what stands before
            the blocks has l = 0, block i (from 0) l = i+1, all else L+1 (BEiT, DINOv2).
        decay_exclude: parameters without weight decay, and under ``lars`` without adaptation. Kinds:
            ``bias``, ``norm`` (anything else of one dimension: norm weights, layer scales), ``token``
            (class, register and mask tokens, position embeddings), ``role:<name>``. ``()`` decays all.
        constant_lr: roles whose rate stays at the peak after the warm-up (SimSiam's predictor).
        freeze: how long from step 0 the parameters of a role do not move, weight decay included
            (DINO: ``{"last_layer": "1 epoch"}``).
        lr_multipliers: factor of a role's rate (DINOv2: ``{"patch_embed": 0.2}``).
        clip: largest norm of the gradient; None does not clip.
        clip_mode: norm over all parameters (``global``), of each parameter (``parameter``, DINO) or of each
            module (``module``, DINOv2): ``student.backbone``, ``student.head``, ``predictor``, …

    Raises:
        ValueError: a value outside its range; one line with the argument, the value and what is allowed.
    """

    name: Literal["adamw", "sgd", "lars"] | Callable[[list[dict[str, Any]]], Optimizer]
    lr: float | None = None
    _: KW_ONLY
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    betas: Sequence[float] = (0.9, 0.999)
    momentum: float = 0.9
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Duration = 0
    lr_start: float = 0.0
    lr_end: float = 0.0
    scaling: Literal["none", "linear", "sqrt"] = "none"
    reference_batch: int = 256
    layer_decay: float = 1.0
    decay_exclude: Sequence[str] = ("bias", "norm")
    constant_lr: Sequence[str] = ()
    freeze: Mapping[str, Duration] = field(default_factory=dict)
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    clip: float | None = None
    clip_mode: Literal["global", "parameter", "module"] = "global"

    def __post_init__(self) -> None:
        check_values(self)
        # values of its own: what comes from a config may be changed, and need not be plain
        for argument in ("betas", "decay_exclude", "constant_lr"):
            object.__setattr__(self, argument, tuple(getattr(self, argument)))
        for argument in ("freeze", "lr_multipliers"):
            object.__setattr__(self, argument, dict(getattr(self, argument)))

    def scaled_lr(self, batch_size: int | None = None) -> float:
        """Peak learning rate for a global batch (samples an optimizer step: devices × accumulation × batch).

        Raises:
            ValueError: ``scaling`` needs a batch size and has none, or the optimizer has its own rates.
        """
        if self.lr is None:
            raise ValueError("lr: the optimizer was given as a function and has its own learning rates")
        return self.lr * self._batch_factor(batch_size)

    def build(
        self,
        named_parameters: NamedParameters,
        roles: Roles | None = None,
        *,
        batch_size: int | None = None,
        fused: bool = False,
    ) -> Optimizer:
        """The optimizer over ``named_parameters``, each parameter in exactly one group.

        Args:
            named_parameters: what is trained, under its names in the module. Layer-wise decay looks at the
                names below a ``backbone``, or at all where there is none. A tied parameter is taken once.
            roles: parameters by role; those that are not trained may be among them.
            batch_size: the global batch, for ``scaling``.
            fused: AdamW and SGD step in one pass over memory. Not for use with a gradient scaler, whose skipped
                steps a fused optimizer takes for executed ones.

        Raises:
            ValueError: no parameters; a role that the module does not have; no blocks for ``layer_decay``;
                ``scaling`` without a batch size.
        """
        named = without_repeats(named_parameters)
        if not named:
            raise ValueError("named_parameters: none given; the module has nothing to train")
        members = {role: {id(p) for p in parameters} for role, parameters in (roles or {}).items()}
        check_roles(self, members)
        by_layer = layer_factors([name for name, _ in named], self.layer_decay)
        groups: dict[tuple[float, bool, bool, bool], list[Tensor]] = {}  # sharded ones apart from whole ones
        for name, parameter in named:
            own = [role for role, ids in members.items() if id(parameter) in ids]
            factor = math.prod((by_layer[name], *(self.lr_multipliers.get(role, 1.0) for role in own)))
            excluded = {kind_of(name, parameter), *(f"role:{role}" for role in own)}
            decays = excluded.isdisjoint(self.decay_exclude)
            constant = not set(own).isdisjoint(self.constant_lr)
            groups.setdefault((factor, decays, constant, isinstance(parameter, DTensor)), []).append(parameter)
        optimizer = self._optimizer(
            [
                {"params": parameters, "lr_factor": factor, "decays": decays, "lr_constant": constant}
                for (factor, decays, constant, _), parameters in groups.items()
            ],
            fused=fused and all(parameter.device.type in ("cpu", "cuda") for _, parameter in named),
        )
        for group in optimizer.param_groups:
            group["base_lr"] = float(group["lr"]) * self._batch_factor(batch_size)
            group["lr"] = group["base_lr"] * group["lr_factor"]
            if "weight_decay" in group:
                group["base_weight_decay"] = float(group["weight_decay"])
                group["weight_decay"] = group["base_weight_decay"] if group["decays"] else 0.0
        return optimizer

    def apply(self, optimizer: Optimizer, clock: Clock) -> None:
        """Set the learning rate and weight decay of every group for the step ``clock.step``.

        The peaks are those of the groups, so a resumed run keeps the ones it began with.
        """
        for group in optimizer.param_groups:
            rate = self._lr_schedule(group["base_lr"], group["lr_constant"])
            group["lr"] = group["lr_factor"] * rate(clock)
            if "weight_decay" in group:
                decay = self._decay_schedule(group["base_weight_decay"])
                group["weight_decay"] = decay(clock) if group["decays"] else 0.0

    def clip_gradients(self, named_parameters: NamedParameters) -> None:
        """Scale large gradients down, in place; see :func:`~selfdistill.optim.clipping.clip_gradients`.

        They must be complete (all micro-batches in them) and free of a loss scale.
        """
        if self.clip is not None:
            clip_gradients(named_parameters, self.clip, self.clip_mode)

    def freeze_gradients(self, roles: Roles, clock: Clock) -> None:
        """Take the gradients of frozen roles away, so that the optimizer skips them, weight decay included.

        To be called after clipping, as DINO does: frozen parameters count in the norm.
        """
        for role, duration in self.freeze.items():
            if clock.step < duration_in_steps(duration, clock):
                for parameter in roles[role]:
                    parameter.grad = None

    def _optimizer(self, groups: list[dict[str, Any]], *, fused: bool) -> Optimizer:
        if callable(self.name):
            return self.name(groups)
        assert self.lr is not None
        if self.name == "adamw":
            first, second = self.betas
            return torch.optim.AdamW(
                groups, lr=self.lr, betas=(first, second), weight_decay=self.weight_decay, fused=fused or None
            )
        if self.name == "sgd":
            fused = fused and not any(isinstance(p, DTensor) for group in groups for p in group["params"])
            return torch.optim.SGD(groups, self.lr, self.momentum, weight_decay=self.weight_decay, fused=fused or None)
        adapted = [{**group, "adapt": group["decays"]} for group in groups]
        return Lars(adapted, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _batch_factor(self, batch_size: int | None) -> float:
        if self.scaling == "none":
            return 1.0
        if batch_size is None or batch_size < 1:
            raise ValueError(
                f"batch_size: {batch_size} given with scaling={self.scaling}, allowed is 1 or more; "
                "give the global batch size or use scaling=none"
            )
        ratio = batch_size / self.reference_batch
        return ratio if self.scaling == "linear" else math.sqrt(ratio)

    def _lr_schedule(self, peak: float, constant: bool) -> Schedule:
        after: Schedule = ConstantSchedule(peak)
        if self.schedule == "cosine" and not constant:
            after = CosineSchedule(peak, self.lr_end)
        elif self.schedule == "linear" and not constant:
            after = LinearSchedule(peak, self.lr_end)
        return WarmupSchedule(after, self.warmup, self.lr_start)

    def _decay_schedule(self, start: float) -> Schedule:
        if self.weight_decay_end is None:
            return ConstantSchedule(start)
        return CosineSchedule(start, self.weight_decay_end)
