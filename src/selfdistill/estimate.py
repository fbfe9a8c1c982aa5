"""``cost_only=true``: what a configuration would cost, answered on the meta device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from omegaconf import DictConfig

from selfdistill.assembly import build_method, micro_batches
from selfdistill.clock import Clock
from selfdistill.config import UserError
from selfdistill.config.named import made
from selfdistill.costs import StepCost, ddp, fsdp2, meta_views, step_cost, units_of
from selfdistill.costs.table import binary, cost_lines, decimal
from selfdistill.text_table import aligned
from selfdistill.views import ViewRecipe

GPUS = (1, 8, 32, 128)
"""Numbers of GPUs that are answered for, beside that of the configuration."""

CARD = 80e9
"""Bytes of a card that a batch shall fit, nine tenths of which are taken for tensors."""

_HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Planned:
    """The module and views of a configuration on the meta device: nothing is allocated, no random number is drawn.

    Args:
        config: resolved.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config = config.copy()
        # values do not matter, and need not be had
        config.backbone = {key: v for key, v in config.backbone.items() if key not in ("pretrained", "checkpoint")}
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            self.module = build_method(config)
        # lengths in epochs need some; what is counted does not depend on them
        self.module.clock = Clock(0, 1000, 100)
        self.recipe: ViewRecipe = made("views", config.views)
        self.batch = int(config.data.batch_size) * micro_batches(config)
        if micro_batches(config) > 1:
            self.module.micro_batch_size = int(config.data.batch_size)
        self.checkpointing = bool(config.trainer.get("activation_checkpointing", False))

    def cost(self, *, batch: int | None = None, checkpointing: bool | None = None) -> StepCost:
        """The cost of one batch in one process; under ``accumulate=exact`` it is that of a whole optimizer step.

        Args:
            batch: images; None takes the configuration's.
            checkpointing: recompute the student's blocks; None does as the configuration says.

        Raises:
            ValueError: a backbone that cannot recompute.
        """
        self.module.student.backbone.checkpoint_activations(
            self.checkpointing if checkpointing is None else checkpointing
        )
        self.module.zero_grad()
        views = meta_views(self.recipe, self.config.data.image.channels, batch or self.batch)
        return step_cost(self.module, views, half=_HALF.get(str(self.config.trainer.precision)))

    def table(self, cost: StepCost) -> str:
        """What is printed before a run."""
        return cost_lines(cost, optimizer=str(self.config.optimizer.name), recipe=self.recipe)


def predicted(config: DictConfig) -> StepCost | None:
    """The cost of a run's step, its table printed; None, with a line that says why, for what cannot be counted."""
    try:
        planned = Planned(config)
        cost = planned.cost()
    except Exception as error:  # a network or method of the user's own, and no reason not to train it
        print(f"costs: not predicted, since the step does not run without values ({_first_line(error)})")
        return None
    print(f"\n{planned.table(cost)}\n", flush=True)
    return cost


def answer(config: DictConfig) -> str:
    """What ``cost_only=true`` prints: the table, what checkpointing changes, and many GPUs.

    Raises:
        UserError: a network or method that needs values to run.
    """
    try:
        planned = Planned(config)
        cost = planned.cost()
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"cost_only: true given, but the step does not run without values ({_first_line(error)}); train with "
            "trainer.max_steps=10, and the run says what it measured"
        ) from error
    return "\n".join([planned.table(cost), *_checkpointing(planned, cost), "", *_fleet(planned, cost)])


def _checkpointing(planned: Planned, cost: StepCost) -> Iterator[str]:
    on = planned.checkpointing
    try:
        other = planned.cost(checkpointing=not on)
    except ValueError:  # a network of the user's own
        return
    if other != cost:
        yield (
            f"{'without' if on else 'with'} activation checkpointing: activations {binary(other.activations)} in the "
            f"place of {binary(cost.activations)}, {decimal(other.flops)}FLOP in the place of {decimal(cost.flops)}FLOP"
        )


def _fleet(planned: Planned, cost: StepCost) -> Iterator[str]:
    micro = int(planned.config.trainer.accumulate_grad_batches) // micro_batches(planned.config)
    units = units_of(planned.module)
    small = planned.cost(batch=max(1, planned.batch // 2))
    own = _world(planned.config)
    rows = []
    for gpus in sorted({*GPUS, *([own] if own else [])}):
        row = [f"{gpus:,}", f"{gpus * planned.batch * micro:,}"]
        for share, less in (
            (ddp(cost, gpus), ddp(small, gpus)),
            (fsdp2(cost, gpus, units, micro_batches=micro), fsdp2(small, gpus, units, micro_batches=micro)),
        ):
            most = _fitting(share.memory, less.memory, planned.batch, small.batch)
            row += [binary(share.memory), binary(share.sent), most]
        rows.append(row)
    head = ["GPUs", "batch"]
    for name in ("DDP", "FSDP2"):
        head += [f"{name}: a GPU holds", "sends a step", "80 GB take"]
    yield aligned(rows, head)
    yield "80 GB take so many images a GPU, with a tenth left for what is not tensors"


def _fitting(memory: int, less: int, batch: int, small: int) -> str:
    """Images that fill nine tenths of a card: memory is a straight line over the batch."""
    if batch == small:
        return "–"
    slope = (memory - less) / (batch - small)
    most = int((0.9 * CARD - (memory - slope * batch)) / slope)
    return f"{most:,}" if most > 0 else "none"


def _world(config: DictConfig) -> int | None:
    """GPUs of the configuration; None where it says ``auto``, or lists them otherwise."""
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    return int(devices) * int(nodes) if isinstance(devices, int) and devices > 0 else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
