"""The shared module: it owns the order of a training step, a method owns its content.

Shapes: V crops, B images, D features, P projections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selfdistill.compatibility import Accepts, check_precision
from selfdistill.data import ResumableLoader
from selfdistill.divergences import Divergence
from selfdistill.methods.accumulation import HeldStatistics, Window, images_of_all, images_of_step
from selfdistill.methods.coupling import approximated, over_all_images
from selfdistill.methods.finite import FiniteGuard
from selfdistill.methods.outputs import Answers, Outputs, detached
from selfdistill.methods.parts import accepted_divergence, check_parts
from selfdistill.methods.sharded import shard_towers
from selfdistill.methods.weighing import objective_terms, weighed
from selfdistill.networks import Tower
from selfdistill.objectives import Coupling, Objective
from selfdistill.optim import OptimizerRecipe
from selfdistill.schedules import Clock, Schedule, as_schedule
from selfdistill.sharding import local
from selfdistill.teacher import TeacherPolicy, TeacherUpdate
from selfdistill.views import Views
from selfdistill.views.micro_batches import in_micro_batches

P = TypeVar("P")
T = TypeVar("T")


class SelfDistillModule(L.LightningModule, ABC, Generic[P, T]):
    """Student, teacher, and the order of a step: targets, predictions, terms, backward, step, update.

    A method implements :meth:`targets`, :meth:`predictions` and :meth:`terms`, and may implement
    :meth:`observe`, :meth:`embed` and :meth:`parameter_roles`. It has no training step, no optimizer
    code, no update of the teacher and no logging of its own.

    Args:
        student: the tower that is trained; the teacher is a copy of it, made here.
        teacher: how the teacher is made and moves.
        optimizer: what steps, with its schedules.
        weights: a number or a schedule for each named term, or for all terms of a named objective; what is
            not named weighs 1.
        objectives: further losses by name.
        divergence: becomes ``self.divergence``, for the methods that take one.

    Raises:
        ValueError: a part that the method does not accept.
    """

    evaluates: ClassVar[Literal["student", "teacher"]] = "student"
    """Which of the two networks the paper evaluates, exports and shows to monitors."""

    accepts: ClassVar[Accepts] = Accepts()
    """What the method works with; anything else is refused where the module is built."""

    over_ranks: ClassVar[frozenset[str]] = frozenset()
    """Terms that take account of other ranks' images by themselves; all others are means over a rank's own."""

    teacher: Tower | None
    divergence: Divergence

    def __init__(
        self,
        student: Tower,
        *,
        teacher: TeacherPolicy,
        optimizer: OptimizerRecipe,
        weights: Mapping[str, Schedule | float] | None = None,
        objectives: Mapping[str, nn.Module] | None = None,
        divergence: Divergence | Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_parts(name, self.accepts, student, teacher, objectives or {})
        if divergence is not None:
            self.divergence = accepted_divergence(name, self.accepts, divergence)
        self.student = student
        self.teacher_policy = teacher
        if not teacher.moves:
            # a network that stands still has learned nothing
            self.evaluates = "student"  # type: ignore[misc]
        self.teacher = teacher.make(student)  # type: ignore[assignment]
        if self.teacher is not None:
            # a Trainer does not call train() before it fits
            self.teacher.train(teacher.mode == "train")
        self.optimizer_recipe = optimizer
        self.weights = {name: as_schedule(value) for name, value in (weights or {}).items()}
        self.objectives = nn.ModuleDict(dict(objectives or {}))
        self.clock = Clock()
        """Optimizer steps taken; written by :class:`TeacherUpdate` alone."""
        self.provenance: dict[str, Any] = {}
        """Plain values stored in every checkpoint (the runner puts the resolved config here)."""
        self.micro_batch_size: int | None = None
        """Images that networks see at a time, where a batch has more (``accumulate=exact``); None: all."""
        self._window, self._statistics = Window(), HeldStatistics()
        self._observable: tuple[Views, P, T] | None = None
        self._guard = FiniteGuard()
        for objective in self.objectives.values():
            if isinstance(objective, Objective):
                objective.attach(self)

    # what a method implements ------------------------------------------------------------------------

    @abstractmethod
    def targets(self, views: Views) -> T:
        """Raw teacher outputs (without gradient); None where the student teaches itself."""

    @abstractmethod
    def predictions(self, views: Views) -> P:
        """Student outputs, with gradient."""

    @abstractmethod
    def terms(self, predictions: P, targets: T) -> dict[str, Tensor]:
        """Named scalar losses, in float32; reads buffers and the clock, writes nothing."""

    # what a method may implement ---------------------------------------------------------------------

    def observe(self, predictions: P, targets: T) -> None:
        """Stage this micro-batch for center or queue; called after backward, without gradient."""

    def answers(self, predictions: P, targets: T) -> Answers | None:
        """What a step that returned these says over prototypes; None for a method without prototypes."""
        return None

    def couples(self) -> dict[str, Coupling]:
        """Terms that are no mean over images, and what couples these: micro-batches only approximate them."""
        return {}

    def embed(self, images: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, D]``: the representation that is evaluated."""
        return self.evaluated_tower.backbone(images).pooled

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role (``predictor``, ``last_layer``, ``prototypes``) for the optimizer recipe."""
        return {}

    # what methods use --------------------------------------------------------------------------------

    def paired(self, predictions: Outputs, targets: Outputs) -> tuple[Tensor, Tensor]:
        """Projections of both sides, ``[pairs, B, P]``, as ``predictions.pairs`` joins them; ValueError without."""
        if not predictions.pairs:
            raise ValueError("views: no pair of crops to compare; choose a recipe with two views or more")
        student = torch.stack([predictions.projections[s] for s, _ in predictions.pairs])
        return student, torch.stack([targets.projections[t] for _, t in predictions.pairs])

    def compare(self, divergence: Divergence, predictions: Outputs, targets: Outputs) -> Tensor:
        """Mean of ``divergence`` over pairs and images, in float32, without gradient to ``targets``."""
        student, teacher = self.paired(predictions, targets)
        return divergence(student.flatten(0, 1), teacher.detach().flatten(0, 1), self.clock).mean()

    # what the base alone does ------------------------------------------------------------------------

    @property
    def teaching_tower(self) -> Tower:
        """The tower that makes targets: the teacher, or the student where there is none."""
        return self.student if self.teacher is None else self.teacher

    @property
    def evaluated_tower(self) -> Tower:
        return self.teaching_tower if self.evaluates == "teacher" else self.student

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images)

    def train(self, mode: bool = True) -> SelfDistillModule[P, T]:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.train(mode and self.teacher_policy.mode == "train")
        return self

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            shard_towers(self, self.student, self.teacher, self.device_mesh["data_parallel"])

    def setup(self, stage: str) -> None:
        check_precision(str(self.trainer.precision))

    def configure_callbacks(self) -> list[L.Callback]:
        callbacks: Iterable[Any] = getattr(self.trainer, "callbacks", ())
        return [] if any(isinstance(c, TeacherUpdate) for c in callbacks) else [TeacherUpdate()]

    def on_train_start(self) -> None:
        loader: Any = self.trainer.train_dataloader
        if isinstance(loader, ResumableLoader):
            # its place in the epoch is known to the Trainer's counters alone
            loader.trainer = self.trainer
        line = approximated(self, self.trainer.accumulate_grad_batches, loader)
        if line is not None and self.trainer.is_global_zero:
            print(line)

    def training_step(self, batch: Views, batch_idx: int) -> dict[str, Any]:
        if not isinstance(batch, Views):
            raise TypeError(
                f"batch: a {type(batch).__name__} given, allowed is Views; make the loader with "
                "selfdistill.views.ViewLoader(dataset, views=…) or a selfdistill DataModule"
            )
        with torch.no_grad():
            targets = in_micro_batches(self.targets, batch, self.micro_batch_size)
        predictions = in_micro_batches(self.predictions, batch, self.micro_batch_size)
        with torch.autocast(self.device.type, enabled=False):
            extra = objective_terms(self, batch, predictions, targets)
            terms, weights = weighed(self.terms(predictions, targets), extra, self.weights, self.clock)
            images = images_of_all(self.trainer, batch_idx, batch.batch_size)
            weights = over_all_images(self, weights, extra, batch.batch_size, images)
            loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        self._observable = (batch, predictions, targets)
        self._weight = self._window.weight(images)
        detached_terms = {name: term.detach() for name, term in terms.items()}
        self._guard.watch(loss, detached_terms)
        every = 1 if self.device.type == "cpu" else max(getattr(self.trainer, "log_every_n_steps", 1), 1)
        if self.clock.step % every == 0:
            self._refuse_non_finite()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=batch.batch_size)
        if len(terms) > 1:
            self.log_dict({f"train/{n}": term for n, term in detached_terms.items()}, batch_size=batch.batch_size)
        return {
            "loss": loss,
            "terms": detached_terms,
            "student": detached(predictions),
            "teacher": detached(targets),
        }

    def on_before_backward(self, loss: Tensor) -> None:
        if self.micro_batch_size is not None or self.student.backbone.recomputes:
            self._statistics.hold(self)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss if self._weight == 1 else loss * self._weight, *args, **kwargs)

    def on_after_backward(self) -> None:
        self._statistics.release()
        if self._observable is None:
            return
        views, predictions, targets = self._observable
        self._observable = None
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self.observe(predictions, targets)
            for objective in self.objectives.values():
                cast(Objective, objective).observe(self, views, predictions, targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        return {"embedding": self.embed(images).float(), "labels": labels}

    def configure_optimizers(self) -> Optimizer:
        named, roles, images = self.trained_parameters(), self.parameter_roles(), images_of_step(self.trainer)
        return self.optimizer_recipe.build(named, roles, batch_size=images, fused=not self._scaled)

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimizer holds: all but the teacher's."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad and not n.startswith("teacher.")]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        factor = self._window.close(self.trainer.accumulate_grad_batches)
        if factor != 1:
            torch._foreach_mul_([local(p.grad) for _, p in self.trained_parameters() if p.grad is not None], factor)
        self.optimizer_recipe.apply(optimizer, self.clock)
        # the rate that the recipe names: groups may have factors of it
        first = optimizer.param_groups[0]
        self.log("optimizer/lr", first["lr"] / (first.get("lr_factor") or 1.0), batch_size=1)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.optimizer_recipe.clip_gradients(self.trained_parameters())
        self.optimizer_recipe.freeze_gradients(self.parameter_roles(), self.clock)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._refuse_non_finite()
        checkpoint["selfdistill"] = {"method": type(self).__name__, **self.provenance}

    def _refuse_non_finite(self) -> None:
        # a gradient scaler skips such steps, and finds its scale in some of them
        self._guard.refuse(self.clock.step, patience=20 if self._scaled else 1)

    @property
    def _scaled(self) -> bool:
        """Whether a gradient scaler may skip steps."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None
