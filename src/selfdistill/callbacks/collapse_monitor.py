"""Watches the geometry of what the step returned, and says when it collapses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from selfdistill.evaluation.geometry import effective_rank, feature_std, parameter_distance


class CollapseMonitor(L.Callback):
    """Logs per-dimension spread, effective rank and teacher–student distance; warns of complete collapse.

    Nothing is computed again: the features are those of the training step, of the network that the
    method evaluates. Logged every ``every`` optimizer steps:

    - ``monitor/std``: per-dimension standard deviation of the L2-normalised features × √D; 1 is
      isotropic, 0 is a constant vector;
    - ``monitor/rank``: effective rank of the features' covariance;
    - ``monitor/teacher_distance``: ‖θ_t − θ_s‖ / ‖θ_s‖.

    Args:
        every: optimizer steps between two measurements.
        complete_below: ``monitor/std`` under this is named ``complete``: healthy runs of this package stay
            above 0.5, constant features are at 0.
        patience: measurements in a row before it is named.
        embed: ``outputs of the step -> [N, D]`` for a module that is not ours.
    """

    def __init__(
        self,
        every: int = 20,
        complete_below: float = 0.05,
        patience: int = 3,
        embed: Callable[[Any], Tensor] | None = None,
    ) -> None:
        for name, value in (("every", every), ("patience", patience)):
            if value < 1:
                raise ValueError(f"CollapseMonitor.{name}: {value} given, allowed is 1 or more")
        self.every = every
        self.complete_below = complete_below
        self.patience = patience
        self._embed = embed
        self._bad = 0
        self._measured_at = -1
        self._told = False
        self.kind: str | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._measured_at or (step - 1) % self.every:
            return
        self._measured_at = step
        features = self._features(pl_module, outputs)
        if features is None:
            if not self._told:
                self._told = True
                rank_zero_warn(
                    f"CollapseMonitor is off: the step of {type(pl_module).__name__} returned no features; "
                    "give CollapseMonitor(embed=…)"
                )
            return
        with torch.no_grad():
            spread = float(feature_std(features))
            measured = {"monitor/std": spread, "monitor/rank": float(effective_rank(features))}
            teacher, student = getattr(pl_module, "teacher", None), getattr(pl_module, "student", None)
            if isinstance(teacher, torch.nn.Module) and isinstance(student, torch.nn.Module):
                pair = list(teacher.parameters()), list(student.parameters())
                if [p.shape for p in pair[0]] == [p.shape for p in pair[1]]:
                    measured["monitor/teacher_distance"] = float(parameter_distance(*pair))
        for name, value in measured.items():
            pl_module.log(name, value, prog_bar=name == "monitor/rank", logger=False, batch_size=1)
        # straight to the loggers: Lightning writes only what falls on its own interval
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=step - 1)
        self._judge(spread, step)

    def state_dict(self) -> dict[str, Any]:
        return {"bad": self._bad, "measured_at": self._measured_at, "kind": self.kind}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._bad, self._measured_at = state_dict["bad"], state_dict["measured_at"]
        self.kind = state_dict["kind"]

    def _features(self, pl_module: L.LightningModule, outputs: Any) -> Tensor | None:
        if self._embed is not None:
            return self._embed(outputs).flatten(0, -2)
        if not isinstance(outputs, dict):
            return None
        for side in (getattr(pl_module, "evaluates", "student"), "student"):
            features = getattr(outputs.get(side), "features", None)
            if isinstance(features, Tensor):
                return features.flatten(0, -2)
        return None

    def _judge(self, spread: float, step: int) -> None:
        if spread >= self.complete_below:
            self._bad, self.kind = 0, None
            return
        self._bad += 1
        if self._bad == self.patience:
            self.kind = "complete"
            rank_zero_warn(
                f"collapse (complete) at step {step}: the features are nearly constant (std×√D {spread:.3f}, "
                f"healthy is near 1); usual mends: a higher teacher.momentum, a lower optimizer.lr, "
                "a predictor or centering"
            )
