"""Lightning's FSDP2 strategy, with checkpoints that are those of any other run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
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

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return cast(dict[str, Any], whole(self.model.state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        return cast(dict[str, Any], whole(optimizer.state_dict()))

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
            _load(optimizer, states)
        return stored


def _load(optimizer: Optimizer, stored: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=False))
    states = {
        number: {
            name: like(value, by_number[number]) if isinstance(value, torch.Tensor) else value
            for name, value in state.items()
        }
        for number, state in stored["state"].items()
        if number in by_number
    }
    optimizer.load_state_dict({"state": states, "param_groups": stored["param_groups"]})
