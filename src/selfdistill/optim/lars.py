"""LARS as BYOL runs it.

``timm.optim.Lars`` and solo-learn divide by ``‖g‖ + λ‖p‖``, as the LARS paper does; BYOL divides by
``‖g + λp‖``. The two differ wherever weights are decayed, so the rule is written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from selfdistill.sharding import local, norms


class Lars(Optimizer):
    """SGD with momentum, each tensor's gradient scaled to the size of the tensor.

    With η = ``trust_coefficient``, λ = ``weight_decay``, μ = ``momentum``:

        ``g ← g + λp``;  ``v ← μv + g·η‖p‖/‖g‖``;  ``p ← p − lr·v``

    where the ratio is 1 if either norm is 0 (arXiv 1708.03888 in the form of BYOL, arXiv 2006.07733). A
    group with ``adapt=False`` has no ratio: that is how biases and norms are excluded.

    Args:
        params: parameters or groups.
        lr: learning rate.
        weight_decay: λ.
        momentum: μ.
        trust_coefficient: η.
        adapt: whether a group that does not say so itself is scaled.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
        adapt: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; parameters without a gradient (frozen ones) stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            own = [local(p) for p in parameters]
            updates = list(torch._foreach_add([local(p.grad) for p in parameters], own, alpha=group["weight_decay"]))
            if group["adapt"]:
                torch._foreach_mul_(updates, _trust_ratios(parameters, updates, group["trust_coefficient"]))
            velocities = [local(self._velocity(p)) for p in parameters]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, updates)
            torch._foreach_add_(own, velocities, alpha=-group["lr"])
        return loss

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _trust_ratios(parameters: list[Tensor], updates: list[Tensor], coefficient: float) -> list[Tensor]:
    p, g = norms(parameters), norms(parameters, held=updates)
    return list(torch.where((p > 0) & (g > 0), coefficient * p / g, 1.0).unbind())
