"""Mixed precision, with a real gradient scaler, over conf/method/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from stepping import Module, Steps, batch_of, trained
from torch import Tensor, nn

from selfdistill.assembly import build_method
from selfdistill.config import CONF
from selfdistill.schedules import Clock
from selfdistill.views.micro_batches import micro_batches

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))

QUICK = ("simsiam_like", "dino_like", "data2vec_like")

pytestmark = pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)


def half() -> MixedPrecision:
    """float16 as on a GPU: a Trainer would take bfloat16 on a CPU, without a scaler."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))  # type: ignore[arg-type]


def poison(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.full_like(value, torch.inf)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(poison(item) for item in value))
    return type(value)(poison(item) for item in value) if isinstance(value, tuple | list) else value


class Overflow(L.Callback):
    """Everything that makes the targets of the second batch is infinite."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        tower: nn.Module = pl_module.teaching_tower
        self._hooks = [tower.register_forward_hook(lambda *a: poison(a[-1]))] if batch_idx == 1 else []

    def on_train_batch_end(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()


class States(L.Callback):
    """State, clock and learning rates after each batch; the loss's type."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.clocks: list[int] = []
        self.rates: list[list[float]] = []
        self.kinds: set[torch.dtype] = set()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.states.append({n: v.clone() for n, v in pl_module.state_dict().items() if isinstance(v, Tensor)})
        self.clocks.append(pl_module.clock.step)
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.kinds |= {outputs["loss"].dtype, *(term.dtype for term in outputs["terms"].values())}


def run(compose: Any, tmp_path: Path, method: str, batches: int, **settings: Any) -> tuple[Module, States, Steps]:
    config = compose(f"method={method}", "debug=fast", f"data.batch_size={8 * batches}", "backbone.drop_path=0")
    views = [part.views for part in micro_batches(batch_of(config), 8)]
    L.seed_everything(0, verbose=False)
    module, states = build_method(config), States()
    callbacks = [states, *settings.pop("callbacks", [])]
    return module, states, trained(module, views, tmp_path, callbacks=callbacks, **settings)


def test_the_loss_is_that_of_single_precision(method: str, compose: Any, tmp_path: Path) -> None:
    _, _, wanted = run(compose, tmp_path, method, 1)
    for settings in ({"precision": "bf16-mixed"}, {"plugins": [half()]}):
        _, states, found = run(compose, tmp_path, method, 1, **settings)
        assert states.kinds == {torch.float32}
        assert found.losses == pytest.approx(wanted.losses, rel=1e-2)
        assert all(bool(value.isfinite().all()) for value in states.states[-1].values())


def test_a_skipped_step_moves_nothing(method: str, compose: Any, tmp_path: Path) -> None:
    module, states, found = run(compose, tmp_path, method, 3, plugins=[half()], callbacks=[Overflow()])
    first, skipped, last = states.states
    # batch norms of the student counted the batch when it passed
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in skipped.items():
        if not name.endswith(statistics):
            assert torch.equal(value, first[name]), name
    assert states.clocks == [1, 1, 2]
    assert len(found.gradients) == 2
    assert states.rates[2] == states.rates[1] != states.rates[0]
    assert all(bool(value.isfinite().all()) for name, value in last.items() if not name.endswith(statistics))
    assert any(not torch.equal(value, skipped[name]) for name, value in last.items() if name.startswith("student."))
    if module.teacher is not None:
        assert found.momenta[-1] == module.teacher_policy.schedule(Clock(1, 3, 3))
