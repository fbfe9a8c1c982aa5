"""What a training step costs: the memory that it holds, by what holds it, and its FLOPs, by phase."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from selfdistill.costs.gathers import Gathers
from selfdistill.costs.kernels import Kernels
from selfdistill.costs.trace import Trace
from selfdistill.methods import SelfDistillModule
from selfdistill.methods.weighing import objective_terms, weighed
from selfdistill.views import ViewRecipe, Views
from selfdistill.views.micro_batches import in_micro_batches, micro_batches


@dataclass(frozen=True)
class Part:
    """Numbers and bytes of some tensors, buffers among the bytes alone."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class StepCost:
    """One step of ``batch`` images in one process.

    Attributes:
        batch: images.
        micro_batch: images that networks see at a time: fewer under ``accumulate=exact``, whose micro-batches run
            forward a second time, for their gradient.
        student: backbone and head.
        beside: what else is trained: predictor, prototypes, mask token, heads of objectives.
        teacher: backbone and head.
        state: bytes of the buffers outside of student and teacher: center, queue, a predictor's running means.
        gradients: bytes.
        optimizer: bytes of its state.
        views: bytes of the crops and masks.
        activations: bytes alive when backward begins, targets and outputs included, and those of one micro-batch that
            runs again.
        state_of: names of the module's parts that hold them.
        peak: greatest number of bytes alive, in forward and backward, the last step's gradients being freed between
            them; the memory that kernels work in, and the optimizer's passing copies, are not counted.
        teacher_flops: of the targets' forward pass; 0 where there is no teacher.
        student_flops: of the predictions' forward pass.
        loss_flops: of the terms.
        backward_flops: of the backward pass.
        gathered: bytes of both networks' parameters, each time that a forward or backward pass reads them.
    """

    batch: int
    micro_batch: int
    student: Part
    beside: Part
    teacher: Part
    state: int
    gradients: int
    optimizer: int
    views: int
    activations: int
    state_of: tuple[str, ...]
    peak: int
    teacher_flops: int
    student_flops: int
    loss_flops: int
    backward_flops: int
    gathered: int

    @property
    def networks(self) -> int:
        """Bytes that are there before a step: M_student + M_teacher, and state."""
        return self.student.bytes + self.beside.bytes + self.teacher.bytes + self.state

    @property
    def model_total(self) -> int:
        """M_total = 2·M_model + M_optimizer, exactly: the networks may differ."""
        return self.networks + self.optimizer

    @property
    def total(self) -> int:
        """Bytes of what stays: everything at once when backward begins."""
        return self.model_total + self.gradients + self.views + self.activations

    @property
    def passing(self) -> int:
        """Bytes at the peak of what is freed again at once."""
        return max(self.peak - self.total, 0)

    @property
    def flops(self) -> int:
        """As counted."""
        return self.teacher_flops + self.student_flops + self.loss_flops + self.backward_flops

    @property
    def formula_flops(self) -> int:
        """2·T_forward + T_backward, T_forward being the student's."""
        return 2 * self.student_flops + self.backward_flops


def meta_views(recipe: ViewRecipe, channels: int, batch: int) -> Views:
    """Views of ``batch`` images on the meta device, with masks as the recipe draws them."""
    masks = recipe.draw_masks(torch.arange(batch), seed=0, epoch=0)
    return Views(
        [torch.empty(batch, channels, spec.size, spec.size, device="meta") for spec in recipe.flat],
        recipe.roles,
        masks={name: mask.to("meta") for name, mask in masks.items()},
        labels=torch.empty(batch, dtype=torch.int64, device="meta"),
        index=torch.empty(batch, dtype=torch.int64, device="meta"),
    )


def step_cost(
    module: SelfDistillModule[Any, Any], views: Views, *, half: torch.dtype | None = None, effective_batch: int = 0
) -> StepCost:
    """Run one step of ``module`` on the meta device and count.

    Args:
        module: built under ``torch.device("meta")``; its gradients are left in it. On another device the step is
            really taken, batch statistics included.
        views: on the same device.
        half: the type of autocast, as CUDA does it; None for float32.
        effective_batch: images of an optimizer step, for the optimizer's scaling; 0 takes the views'.
    """
    module.train()
    before = [*module.parameters(), *module.buffers(), *views.crops, *views.masks.values()]
    size = min(module.micro_batch_size or views.batch_size, views.batch_size)
    again = _activations(module, micro_batches(views, size)[0].views, half) if size < views.batch_size else 0
    trace = Trace()
    kernels = Kernels(trace.add_flops, half)
    gathers = [Gathers(module.student), Gathers(module.teacher)]
    done = [0]
    with trace, kernels if views.crops[0].is_meta else nullcontext():
        trace.ignore(*before)
        with gathers[0], gathers[1]:
            with torch.no_grad():
                targets = in_micro_batches(module.targets, views, module.micro_batch_size)
            done.append(trace.flops)
            predictions = in_micro_batches(module.predictions, views, module.micro_batch_size)
            done.append(trace.flops)
            with kernels.full_precision():
                loss = _loss(module, views, predictions, targets)
            done.append(trace.flops)
        kernels.end_of_forward()
        kept, forward_peak = trace.alive, trace.peak
        # of the edge, not of the tensor: backward would be a function that `kernels` stands aside of
        torch.autograd.backward(get_gradient_edge(loss), torch.ones_like(loss))
        done.append(trace.flops)
    optimizer = module.optimizer_recipe.build(
        module.trained_parameters(), module.parameter_roles(), batch_size=effective_batch or views.batch_size
    )
    optimizer.step()
    teacher_flops, student_flops, loss_flops, backward_flops = (b - a for a, b in pairwise(done))
    towers = [tower for tower in (module.student, module.teacher) if tower is not None]
    inside = {id(t) for tower in towers for t in _tensors(tower)}
    cost = StepCost(
        batch=views.batch_size,
        micro_batch=size,
        student=_part(module.student.parameters(), module.student.buffers()),
        beside=_part(p for p in module.parameters() if id(p) not in inside),
        teacher=_part(*([] if module.teacher is None else [module.teacher.parameters(), module.teacher.buffers()])),
        state=_bytes(b for b in module.buffers() if id(b) not in inside),
        gradients=_bytes(p.grad for _, p in module.trained_parameters() if p.grad is not None),
        optimizer=_bytes(v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)),
        views=_bytes([*views.crops, *views.masks.values()]),
        activations=kept + again,
        state_of=tuple(dict.fromkeys(n.partition(".")[0] for n, b in module.named_buffers() if id(b) not in inside)),
        peak=0,
        teacher_flops=teacher_flops,
        student_flops=student_flops,
        loss_flops=loss_flops,
        backward_flops=backward_flops,
        gathered=sum(network.bytes for network in gathers),
    )
    # Lightning frees the last step's gradients between forward and backward
    return replace(cost, peak=cost.model_total + cost.views + max(forward_peak + cost.gradients, trace.peak))


def _activations(module: SelfDistillModule[Any, Any], views: Views, half: torch.dtype | None) -> int:
    """Bytes that the predictions of ``views`` keep for their gradient."""
    trace = Trace()
    kernels = Kernels(trace.add_flops, half)
    with trace, kernels if views.crops[0].is_meta else nullcontext():
        trace.ignore(*module.parameters(), *module.buffers(), *views.crops, *views.masks.values())
        predictions = module.predictions(views)
        alive = trace.alive
        del predictions
    return alive


def _loss(module: SelfDistillModule[Any, Any], views: Views, predictions: Any, targets: Any) -> Tensor:
    extra = objective_terms(module, views, predictions, targets)
    terms, weights = weighed(module.terms(predictions, targets), extra, module.weights, module.clock)
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _part(parameters: Iterable[Tensor] = (), buffers: Iterable[Tensor] = ()) -> Part:
    parameters = list(parameters)
    return Part(sum(p.numel() for p in parameters), _bytes([*parameters, *buffers]))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
