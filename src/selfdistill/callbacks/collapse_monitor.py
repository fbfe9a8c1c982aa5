"""Watches the geometry of what the step returned, names a collapse or a bad teacher, and acts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, get_args

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from selfdistill.callbacks.collapse_measures import GradientSignal, Measures, evaluated_features, measure
from selfdistill.callbacks.collapse_rollback import (
    LR_FACTOR,
    HealthyStates,
    change_targets,
    lowers_learning_rate,
    needs_older_weights,
)
from selfdistill.callbacks.collapse_signs import Kind, Thresholds
from selfdistill.callbacks.collapse_verdict import Alarm, Verdict
from selfdistill.evaluation.geometry import AgeTracker
from selfdistill.teacher import TeacherUpdate

Action = Literal["warn", "stop", "raise", "rollback"]


class CollapseError(RuntimeError):
    """A collapse was named, and ``CollapseMonitor(action="raise")`` was asked for; ``alarm`` says which."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(f"collapse monitor: {alarm.line}")
        self.alarm = alarm


class CollapseMonitor(L.Callback):
    """Logs the geometry of features and answers and the teacher's age; names what goes wrong, and acts.

    Nothing is computed again: the features are those of the training step, of the network that the method
    evaluates. Every ``every`` optimizer steps ``monitor/…`` gets, where the module has them:

    - ``std``, ``rank``, ``rank_ratio``, ``rankme``, ``cosine``, ``uniformity``, ``alignment`` of the features, and
      ``projection_std``, ``projection_rank`` of the projections: see :mod:`selfdistill.evaluation.geometry`;
    - of answers over prototypes, as shares of ln K: ``prototype_entropy`` (of the mean answer: 1 all are used, 0 one
      takes all), ``prototype_sharpness`` (1 − mean entropy: 0 uniform, 1 one-hot), ``prototype_information`` (the
      former less the mean entropy), and the same of the ``target``; ``kl`` (teacher‖student) and
      ``target_entropy_nats``, which add up to the cross-entropy;
    - ``loss``; ``gradient_norm``, before clipping; and ``gradient_signal``, the cosine to the gradient of the step
      before;
    - of the teacher: ``teacher_distance`` ‖θ_t − θ_s‖/‖θ_s‖, ``agreement`` (cosine of both networks' features, for the
      same crops where both see the same), ``teacher_age`` and ``half_life`` in steps, from the momenta that it really
      had, and ``teacher_drift``, the relative way of its next update.

    What is named, and when, stands in :class:`~selfdistill.callbacks.Thresholds`: ``complete`` (one
    vector), ``dimensional`` (few directions), ``cluster`` (one prototype), ``uniform`` (no information),
    ``teacher_stale``, ``teacher_copying``, ``diverging``. All processes reach the same verdict.

    On a module that is not ours, ``embed`` finds the features; what else is missing is left out.

    Args:
        every: optimizer steps between two measurements.
        patience: measurements in a row before something is named, and before it is over.
        action: ``warn``; ``stop`` the training; ``raise`` :class:`CollapseError`; or ``rollback``: go back to weights
            and optimizer state from before the first sign, and go on with the mend: learning rate times 0.1, a higher
            momentum, centering on. A stale teacher's momentum is changed without going back. Needs all parameters in
            each process, and host memory and checkpoints for three more copies of model and optimizer state.
        rollbacks: how often ``rollback`` may act; after that it warns.
        rows: most features that the geometry is computed from, over all processes.
        thresholds: where a measure becomes a sign; a mapping changes single ones.
        embed: ``outputs of the step -> [N, D]``, or ``[V, N, D]`` for V views of the same images.

    Attributes:
        measured_at: index of the optimizer step that was measured last; −1 before.

    Raises:
        ValueError: a setting out of range, or ``rollback`` with a sharded model.
    """

    logs: ClassVar[tuple[str, ...]] = ("monitor/*",)

    def __init__(
        self,
        every: int = 20,
        patience: int = 3,
        action: Action = "warn",
        rollbacks: int = 3,
        rows: int = 256,
        thresholds: Thresholds | Mapping[str, float] | None = None,
        embed: Callable[[Any], Tensor] | None = None,
    ) -> None:
        for name, value, least in (
            ("every", every, 1),
            ("patience", patience, 1),
            ("rollbacks", rollbacks, 1),
            ("rows", rows, 2),
        ):
            if value < least:
                raise ValueError(f"CollapseMonitor.{name}: {value} given, allowed is {least} or more")
        if action not in get_args(Action):
            raise ValueError(f"CollapseMonitor.action: {action!r} given, allowed is {', '.join(get_args(Action))}")
        if not isinstance(thresholds, Thresholds):
            thresholds = Thresholds(**(thresholds or {}))
        self.every = every
        self.action = action
        self.rollbacks = rollbacks
        self.rows = rows
        self._embed = embed
        self._verdict = Verdict(thresholds, patience)
        self._gradients = GradientSignal()
        self._age = AgeTracker()
        self._ages: list[float] = []
        self._moved_at = 0
        self.measured_at = -1
        self._told = False
        self._healthy = HealthyStates(gap=max(patience + 2, 5))
        self._mended: list[str] = []
        self._lr_factor = 1.0
        self._center_on = False

    @property
    def kind(self) -> Kind | None:
        """The worst alarm that stands."""
        return self._verdict.kind

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms of the run, in their order."""
        return list(self._verdict.alarms)

    @property
    def mends(self) -> list[str]:
        """What ``rollback`` did, a line each."""
        return list(self._mended)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.action != "rollback":
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(
                f"CollapseMonitor.action: rollback given with {type(trainer.strategy).__name__}, which splits the "
                "parameters; allowed there is warn, stop or raise"
            )
        if self._center_on:
            change_targets("cluster", pl_module, None, math.inf)
        if self._healthy.empty:
            self._healthy.keep(trainer, pl_module, trainer.global_step, lr_factor=1.0, now=True)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step
        keep, compare = (step + 1) % self.every == 0, step % self.every == 0
        if keep or compare:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            self._gradients.observe(parameters, keep=keep, compare=compare)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning sets the attribute without declaring it.
        update = next((c for c in trainer.callbacks if isinstance(c, TeacherUpdate)), None)  # type: ignore[attr-defined]
        if update is not None and update.momentum is not None and update.clock.step != self._moved_at:
            self._moved_at = update.clock.step
            self._ages.append(self._age.update(update.momentum))
        step = trainer.global_step - 1
        if step < 0 or step == self.measured_at or step % self.every:
            return
        features = evaluated_features(pl_module, outputs) if self._embed is None else self._embed(outputs)
        if features is None:
            if not self._told:
                self._told = True
                rank_zero_warn(
                    f"CollapseMonitor is off: the step of {type(pl_module).__name__} returned no features; "
                    "give CollapseMonitor(embed=…)"
                )
            return
        self.measured_at = step
        extra = dict(self._gradients.measures)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            extra["loss"] = loss.detach()
        measures = measure(pl_module, outputs, batch, features, rows=self.rows, extra=extra)
        measures |= self._of_the_teacher(update, measures)
        self._log(trainer, pl_module, measures, step)
        total = float(trainer.estimated_stepping_batches)
        alarms = self._verdict.judge(step, step / total if total else 1.0, measures)
        for alarm in alarms:
            rank_zero_warn(f"collapse monitor: {alarm.line}")
        if alarms:
            self._act(alarms[0], trainer, pl_module, update, total)
        elif self.action == "rollback" and not self._verdict.suspects and not self._verdict.standing:
            self._healthy.keep(trainer, pl_module, step, lr_factor=self._lr_factor)

    def state_dict(self) -> dict[str, Any]:
        return {
            "verdict": self._verdict.state_dict(),
            "age": asdict(self._age),
            "ages": list(self._ages),
            "moved_at": self._moved_at,
            "measured_at": self.measured_at,
            "mended": list(self._mended),
            "lr_factor": self._lr_factor,
            "center_on": self._center_on,
            "healthy": self._healthy.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._verdict.load_state_dict(state_dict["verdict"])
        self._age = AgeTracker(**state_dict["age"])
        self._ages = list(state_dict["ages"])
        self._moved_at, self.measured_at = state_dict["moved_at"], state_dict["measured_at"]
        self._mended, self._lr_factor = list(state_dict["mended"]), state_dict["lr_factor"]
        self._center_on = state_dict["center_on"]
        self._healthy.load_state_dict(state_dict["healthy"])
        if self.action in ("stop", "raise") and self._verdict.standing:
            # the run goes on as it was when this was acted upon: what is still wrong is acted upon again
            self._verdict.forgive()

    def _of_the_teacher(self, update: TeacherUpdate | None, measures: Measures) -> Measures:
        if update is None or update.momentum is None or not self._ages:
            return {}
        # the mean since the last measurement: a teacher that is copied now and then has all ages
        found = {"teacher_age": sum(self._ages) / len(self._ages), "half_life": self._age.half_life}
        self._ages = []
        if "teacher_distance" in measures:
            # θ_t' − θ_t = (1 − m)(θ_s − θ_t)
            found["teacher_drift"] = (1 - update.momentum) * measures["teacher_distance"]
        return found

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, measures: Measures, step: int) -> None:
        named = {f"monitor/{name}": value for name, value in measures.items()}
        bar = "monitor/rank"
        pl_module.log(bar, named[bar], prog_bar=True, logger=False, batch_size=1)
        pl_module.log_dict({n: v for n, v in named.items() if n != bar}, logger=False, batch_size=1)
        # straight to the loggers: Lightning writes only what falls on its own interval
        for logger in trainer.loggers:
            logger.log_metrics(named, step=step)

    def _act(
        self, alarm: Alarm, trainer: L.Trainer, pl_module: L.LightningModule, update: TeacherUpdate | None, total: float
    ) -> None:
        if self.action == "stop":
            trainer.should_stop = True
        elif self.action == "raise":
            raise CollapseError(alarm)
        elif self.action == "rollback":
            if len(self._mended) >= self.rollbacks:
                rank_zero_warn(f"collapse monitor: {self.rollbacks} rollbacks are used up; going on without")
                return
            self._roll_back(alarm, trainer, pl_module, update, total)

    def _roll_back(
        self, alarm: Alarm, trainer: L.Trainer, pl_module: L.LightningModule, update: TeacherUpdate | None, total: float
    ) -> None:
        slower = lowers_learning_rate(alarm.kind, pl_module)
        done = change_targets(alarm.kind, pl_module, update, total)
        self._center_on |= any(line.startswith("center") for line in done)
        if slower:
            self._lr_factor *= LR_FACTOR
            done.append(f"learning rate × {self._lr_factor:.3g}")
        where = "as it is"
        if needs_older_weights(alarm.kind):
            back_to = self._healthy.restore(trainer, pl_module, lr_factor=self._lr_factor)
            where = f"back to step {back_to}"
        self._verdict.forgive()
        line = f"{alarm.kind} at step {alarm.step}: {where}, {', '.join(done) or 'nothing to change'}"
        self._mended.append(line)
        rank_zero_warn(f"collapse monitor: rollback {len(self._mended)} of {self.rollbacks}, {line}")
