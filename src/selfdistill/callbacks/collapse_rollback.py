"""Going back to weights from before a collapse, and going on in a way that may avoid it."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
from torch import Tensor, nn

from selfdistill.callbacks.collapse_signs import Kind
from selfdistill.optim import scale_learning_rate
from selfdistill.targets import Center
from selfdistill.teacher import TeacherUpdate
from selfdistill.teacher.update import Staged

LR_FACTOR = 0.1
_CENTER_MOMENTUM = 0.9
# mean age of a teacher, as shares of the run: the oldest that is still useful, and the youngest
_OLDEST, _YOUNGEST = 0.05, 0.1


class HealthyStates:
    """Copies, in host memory, of module and optimizers from measurements without any sign.

    Three are kept. :meth:`restore` takes the older of the last two: what was copied last may be from the beginning of
    the collapse that was found later. Where a collapse comes back before another copy was made, that one was damaged,
    too, and the run's first is taken.

    Args:
        gap: measurements between two copies.
    """

    def __init__(self, gap: int) -> None:
        self.gap = gap
        self._since = 0
        self._first: dict[str, Any] | None = None
        self._older: dict[str, Any] | None = None
        self._newer: dict[str, Any] | None = None
        self._returned = False

    def keep(self, trainer: L.Trainer, module: nn.Module, step: int, *, lr_factor: float, now: bool = False) -> None:
        """Copy the state after ``step``, if ``gap`` measurements have passed since the last copy, or ``now``."""
        self._since += 1
        if not now and self._since < self.gap:
            return
        self._since = 0
        self._returned = False
        self._older, self._newer = (
            self._newer,
            {
                "step": step,
                "lr_factor": lr_factor,
                "module": _on_host(module.state_dict()),
                "optimizers": [_on_host(optimizer.state_dict()) for optimizer in trainer.optimizers],
            },
        )
        self._first = self._first or self._newer

    def restore(self, trainer: L.Trainer, module: nn.Module, *, lr_factor: float) -> int:
        """Put a copy back, with learning rates ``lr_factor`` times those of the run's start.

        Time goes on: steps, schedules and the order of the data are not set back. What the current step has staged
        for center or queue is discarded.

        Returns:
            The step that the copy is from.
        """
        state = self._first if self._returned else self._older or self._newer
        assert state is not None
        module.load_state_dict(state["module"])
        for optimizer, stored in zip(trainer.optimizers, state["optimizers"], strict=True):
            # a copy: the optimizer would go on in these very tensors
            optimizer.load_state_dict(copy.deepcopy(stored))
            scale_learning_rate(optimizer, lr_factor / state["lr_factor"])
        for part in module.modules():
            if part is not module and isinstance(part, Staged):
                part.discard()
        self._older, self._newer, self._since, self._returned = state, None, 0, True
        return int(state["step"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "first": self._first,
            "older": self._older,
            "newer": self._newer,
            "since": self._since,
            "returned": self._returned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self._older, self._newer = state["first"], state["older"], state["newer"]
        self._since, self._returned = state["since"], state["returned"]

    @property
    def empty(self) -> bool:
        return self._older is None and self._newer is None


def needs_older_weights(kind: Kind) -> bool:
    """Whether the student is damaged: not by a teacher that it has left behind."""
    return kind != "teacher_stale"


def lowers_learning_rate(kind: Kind, module: nn.Module) -> bool:
    """Whether a slower student is the mend: not where the teacher is, and not where centering was off."""
    return not kind.startswith("teacher_") and not (kind == "cluster" and _centers_off(module))


def change_targets(kind: Kind, module: nn.Module, update: TeacherUpdate | None, total_steps: float) -> list[str]:
    """Turn centering on, or move the teacher's momentum, as ``kind`` asks for.

    Args:
        kind: what was named.
        module: whose :class:`Center` objects are looked at.
        update: what moves the teacher; None where nothing does.
        total_steps: optimizer steps of the run.

    Returns:
        What was changed, in words.
    """
    if kind == "cluster":
        off = _centers_off(module)
        for center in off:
            center.momentum = _CENTER_MOMENTUM
        if off:
            return [f"center momentum {_CENTER_MOMENTUM}"]
    if update is None or update.momentum is None:
        return []
    now, steps = update.momentum, min(total_steps, 1e6)
    oldest, youngest = 1 - 1 / (1 + max(_OLDEST * steps, 2)), 1 - 1 / (1 + max(_YOUNGEST * steps, 2))
    if kind == "teacher_stale":
        update.keep_within(0.0, min(oldest, now))
        return [f"momentum at most {min(oldest, now):.4g}"]
    if kind == "teacher_copying":
        update.keep_within(youngest, 1.0)
        return [f"momentum at least {youngest:.4g}"]
    raised = min(1 - (1 - now) / 2, oldest)
    if raised <= now:
        return []
    update.keep_within(raised, 1.0)
    return [f"momentum at least {raised:.4g}"]


def _centers_off(module: nn.Module) -> list[Center]:
    """Centers that hardly move."""
    return [part for part in module.modules() if isinstance(part, Center) and part.momentum > 0.999]


def _on_host(value: Any) -> Any:
    """``value`` with its tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_host(item) for item in value]
    return value
