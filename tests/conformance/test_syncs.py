"""No step waits for the device: traced on a CPU, where the operations that would wait are the same.

Where there is CUDA, torch's own mode says it as well.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from trainers import bare_trainer

from selfdistill.assembly import build_data, build_method
from selfdistill.config import CONF
from selfdistill.methods import SelfDistillModule
from selfdistill.teacher import TeacherUpdate

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
aten = torch.ops.aten
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WAIT = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Waits(TorchDispatchMode):
    """Where this package asked for a value, or for a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        by_mask = func in INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        if func in WAIT or by_mask:
            stack = traceback.extract_stack()
            # AdamW reads its own step counters, which live on the CPU wherever the parameters are
            if not any("torch/optim" in frame.filename for frame in stack):
                own = [frame for frame in stack if "/selfdistill/" in frame.filename]
                self.found += [f"{func} in {frame.filename}:{frame.lineno}" for frame in own[-1:]]
        return func(*args, **(kwargs or {}))


class Trace(L.Callback):
    """From after the views are made until the teacher has moved."""

    def __init__(self) -> None:
        self.waits = Waits()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.waits.__enter__()
        if pl_module.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        self.waits.__exit__(None, None, None)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("method", "micro_batch_size"), [*((m, None) for m in METHODS), ("swav_like", 8), ("ibot_like", 8)]
)
def test_a_step_does_not_wait(
    method: str,
    micro_batch_size: int | None,
    device: str,
    compose: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # on a device it looks at logging steps only
    monkeypatch.setattr(SelfDistillModule, "_refuse_non_finite", lambda self: None)
    config = compose(f"method={method}", "debug=fast")
    L.seed_everything(0, verbose=False)
    trace = Trace()
    few = {"max_steps": 2, "max_epochs": -1, "limit_val_batches": 0}
    trainer = bare_trainer(tmp_path, TeacherUpdate(), trace, accelerator=device, **few)
    module = build_method(config)
    module.micro_batch_size = micro_batch_size
    trainer.fit(module, build_data(config))
    assert trace.waits.operations > 100
    assert trace.waits.found == []


def test_the_tracer_sees_what_waits() -> None:
    # as selfdistill code would: the file's name is what the tracer looks at
    code = "x.item(); x.nonzero(); y[x > 0]; y.__setitem__(x > 0, 1.0)"
    with Waits() as waits:
        exec(compile(code, "/selfdistill/some.py", "exec"), {"x": torch.ones(()), "y": torch.ones(())})
    assert len(waits.found) >= 4
