"""When the teacher moves: once per executed optimizer step, after it."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol, runtime_checkable

import lightning as L
from torch import nn
from torch.optim import Optimizer

from selfdistill.schedules import Clock, Schedule, as_schedule
from selfdistill.teacher.ema import EMA, Buffers
from selfdistill.teacher.policy import TeacherPolicy


@runtime_checkable
class Staged(Protocol):
    """State that is observed in micro-batches and changed once per optimizer step (center, queue)."""

    def commit(self) -> None: ...

    def discard(self) -> None: ...


class TeacherUpdate(L.Callback):
    """Moves the teacher, then commits staged state, after every executed optimizer step.

    A step that the gradient scaler skipped moves nothing: Lightning counts it, this callback does not,
    because it asks the optimizer itself. Under gradient accumulation there is one update per
    optimizer step, and none in validation.

    With a :class:`~selfdistill.SelfDistillModule` there is nothing to set. In any other
    LightningModule, name the two networks::

        trainer = L.Trainer(callbacks=[TeacherUpdate("net", "ema_net", momentum=0.996)])

    Args:
        student: attribute path of the student network in the module.
        teacher: attribute path of the teacher network.
        momentum: number or schedule; None takes the module's own ``teacher_policy``.
        buffers: what happens to float buffers where ``momentum`` is given here.
    """

    logs: ClassVar[tuple[str, ...]] = ("teacher/momentum",)

    def __init__(
        self,
        student: str = "student",
        teacher: str = "teacher",
        momentum: Schedule | float | None = None,
        buffers: Buffers = "copy",
    ) -> None:
        self._student_name = student
        self._teacher_name = teacher
        if isinstance(momentum, int | float) and not 0.0 <= momentum <= 1.0:
            raise ValueError(f"TeacherUpdate.momentum: {momentum} given, allowed is 0 to 1")
        self._momentum = None if momentum is None else as_schedule(momentum)
        self._buffers = buffers
        self.clock = Clock()
        self.momentum: float | None = None
        """The momentum of the last update."""
        self._within = (0.0, 1.0)
        self._ema: EMA | None = None
        self._schedule: Schedule | None = None
        self._staged: list[Staged] = []
        self._hooks: list[Any] = []
        self._executed = False
        self._seen_global_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._build(pl_module)
        self.clock = Clock(self.clock.step, *run_lengths(trainer))
        self._publish(pl_module)
        self._staged = [m for m in pl_module.modules() if m is not pl_module and isinstance(m, Staged)]
        self._executed = False
        self._seen_global_step = trainer.global_step
        self._remove_hooks()
        self._hooks = [o.register_step_post_hook(self._on_step) for o in trainer.optimizers]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step != self._seen_global_step
        self._seen_global_step = trainer.global_step
        if not self._executed:
            if stepped:
                for state in self._staged:
                    state.discard()
            return
        self._executed = False
        if self._ema is not None and self._schedule is not None:
            low, high = self._within
            self.momentum = min(max(self._schedule(self.clock), low), high)
            self._ema.update(self.momentum)
            pl_module.log("teacher/momentum", self.momentum, prog_bar=True, batch_size=1)
        for state in self._staged:
            state.commit()
        self.clock = Clock(self.clock.step + 1, self.clock.total_steps, self.clock.steps_per_epoch)
        self._publish(pl_module)

    def keep_within(self, low: float = 0.0, high: float = 1.0) -> None:
        """Limit the momentum from the next update on, whatever its schedule says; stored in checkpoints.

        Raises:
            ValueError: not 0 ≤ low ≤ high ≤ 1.
        """
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"TeacherUpdate.keep_within: {low} to {high} given, allowed is a range within 0 to 1")
        self._within = (low, high)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._remove_hooks()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.clock.step, "momentum": self.momentum, "within": list(self._within)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.clock = Clock(int(state_dict["step"]), self.clock.total_steps, self.clock.steps_per_epoch)
        self.momentum = state_dict["momentum"]
        self.keep_within(*state_dict.get("within", (0.0, 1.0)))

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._executed = True

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _publish(self, pl_module: L.LightningModule) -> None:
        if isinstance(getattr(pl_module, "clock", None), Clock):
            pl_module.clock = self.clock  # type: ignore[assignment]

    def _build(self, pl_module: L.LightningModule) -> None:
        policy = getattr(pl_module, "teacher_policy", None)
        if self._momentum is None and not isinstance(policy, TeacherPolicy):
            raise ValueError(
                f"TeacherUpdate: {type(pl_module).__name__} has no teacher_policy; give momentum, "
                "student and teacher to TeacherUpdate"
            )
        self._ema = self._schedule = None
        if self._momentum is None and isinstance(policy, TeacherPolicy):
            if policy.source == "none" or policy.network is not None:
                return
            self._schedule, buffers = policy.schedule, policy.buffer_rule
        else:
            self._schedule, buffers = self._momentum, self._buffers
        self._ema = EMA(_network(pl_module, self._teacher_name), _network(pl_module, self._student_name), buffers)


def run_lengths(trainer: L.Trainer) -> tuple[int, int]:
    """(optimizer steps of the whole run, optimizer steps of an epoch), accumulation and limits counted.

    Raises:
        ValueError: the run has no end, so that no schedule over it exists.
    """
    total = trainer.estimated_stepping_batches
    if math.isinf(total):
        raise ValueError("trainer: no end given, which schedules need; set trainer.max_epochs or trainer.max_steps")
    batches = trainer.num_training_batches
    per_epoch = total if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
    return int(total), max(int(per_epoch), 1)


def _network(pl_module: nn.Module, path: str) -> nn.Module:
    found: Any = pl_module
    for name in path.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"TeacherUpdate: {type(pl_module).__name__} has no network {path!r}; "
            "name the attributes that hold the student and the teacher"
        )
    return found
