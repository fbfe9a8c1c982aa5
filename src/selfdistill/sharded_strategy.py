"""Lightning's FSDP2 strategy, with checkpoints that are those of any other run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.optim import Optimizer

from selfdistill.sharding import like, whole

__all__ = ["ShardedStrategy"]


class ShardedStrategy(ModelParallelStrategy):
    """Students and teachers spread over all processes; one whole file a checkpoint, written by rank 0.

    Lightning's own reader of whole files leaves out what a module stores that is no tensor (a queue's position), and
    refuses an optimizer that has no state yet for some parameter (a last layer that is frozen at first). The files are
    in the layout of a run without sharding, so that such a run continues a sharded one and the other way round, and
    nothing has to be consolidated.

    Args:
        process_group_backend: as Lightning's; None is nccl on GPUs and gloo on CPUs.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        if self._layer_sync is not None and self.model is not None:
            # Lightning leaves it out; what is sharded next are the parameters of the layers that are there then
            self.model = self._layer_sync.apply(self.model)

    def setup(self, trainer: L.Trainer) -> None:
        if trainer.gradient_clip_val:
            raise ValueError(
                f"trainer.gradient_clip_val: {trainer.gradient_clip_val} given, allowed with trainer=fsdp2 is null: "
                "it takes sharded and whole gradients together; use optimizer.clip"
            )
        super().setup(trainer)

    def teardown(self) -> None:
        if self._layer_sync is not None and self.model is not None:
            self.model = self._layer_sync.revert(self.model)
        super().teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return cast(dict[str, Any], whole(self.model.state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        assert self.model is not None
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        count = itertools.count()
        for group, parameters in _plain_groups(optimizer, self.model):
            numbers = [next(count) for _ in parameters]
            for number, parameter in zip(numbers, parameters, strict=True):
                if parameter in optimizer.state:
                    state[number] = whole(optimizer.state[parameter])
            groups.append({**group, "params": numbers})
        return {"state": state, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        stored: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only)
        assert self.model is not None
        assert self.lightning_module is not None
        state = self.model.state_dict()
        spread = {
            key: like(value, state[key]) if isinstance(value, torch.Tensor) and key in state else value
            for key, value in stored.pop("state_dict").items()
        }
        self.model.load_state_dict(spread, strict=self.lightning_module.strict_loading)
        for optimizer, states in zip(self.optimizers, stored.get("optimizer_states", ()), strict=False):
            _load(optimizer, self.model, states)
        return stored


def _plain_groups(optimizer: Optimizer, model: nn.Module) -> list[tuple[dict[str, Any], list[nn.Parameter]]]:
    """The groups that `OptimizerRecipe.build` makes without sharding, which has no sharded tensors to keep apart."""
    order = {parameter: number for number, parameter in enumerate(model.parameters())}
    merged: dict[tuple[Any, ...], tuple[dict[str, Any], list[nn.Parameter]]] = {}
    for group in optimizer.param_groups:
        kind = tuple(group[name] for name in ("lr_factor", "decays", "lr_constant"))
        merged.setdefault(kind, (group, []))[1].extend(group["params"])
    found = [(group, sorted(parameters, key=order.__getitem__)) for group, parameters in merged.values()]
    return sorted(found, key=lambda each: order[each[1][0]])


def _load(optimizer: Optimizer, model: nn.Module, stored: Mapping[str, Any]) -> None:
    mine = optimizer.state_dict()
    numbers = {
        parameter: number
        for group, saved in zip(optimizer.param_groups, mine["param_groups"], strict=True)
        for parameter, number in zip(group["params"], saved["params"], strict=True)
    }
    settings: dict[int, dict[str, Any]] = {}
    state: dict[int, dict[str, Any]] = {}
    for (_, parameters), saved in zip(_plain_groups(optimizer, model), stored["param_groups"], strict=True):
        for parameter, number in zip(parameters, saved["params"], strict=True):
            settings[numbers[parameter]] = saved
            if number in stored["state"]:
                state[numbers[parameter]] = {
                    name: like(value, parameter) if isinstance(value, torch.Tensor) else value
                    for name, value in stored["state"][number].items()
                }
    groups = [{**settings[group["params"][0]], "params": group["params"]} for group in mine["param_groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
