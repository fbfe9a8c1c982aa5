"""A training step of a method in a bare loop: what a Trainer calls, without the Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfdistill.methods import SelfDistillModule
from selfdistill.teacher.ema import EMA
from selfdistill.teacher.update import Staged
from selfdistill.views import Views


class _NoTrainer:
    """What a step asks of its Trainer."""

    precision_plugin = None
    log_every_n_steps = 50


class BareStep:
    """Forward, backward, optimizer, teacher, center and queue.

    Args:
        module: the method; it no longer logs.
        optimizer: of its parameters.
        momentum: of the teacher.
    """

    def __init__(
        self, module: SelfDistillModule[Any, Any], optimizer: torch.optim.Optimizer, momentum: float = 0.99
    ) -> None:
        self.module, self.optimizer, self.momentum = module.train(), optimizer, momentum
        self._trainer = _NoTrainer()  # the module keeps a weak reference
        module.trainer = self._trainer  # type: ignore[assignment]
        module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        self.staged = [part for part in module.modules() if part is not module and isinstance(part, Staged)]
        self.ema = None
        if module.teacher is not None:
            self.ema = EMA(module.teacher, module.student, module.teacher_policy.buffer_rule)

    def loss(self, views: Views) -> Tensor:
        return self.module.training_step(views, 0)["loss"]

    def after(self, loss: Tensor) -> None:
        """Backward, and all that follows it."""
        loss.backward()
        self.module.on_after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.momentum)
        for state in self.staged:
            state.commit()

    def __call__(self, views: Views) -> Tensor:
        loss = self.loss(views)
        self.after(loss)
        return loss.detach()
