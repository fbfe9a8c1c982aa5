"""What FSDP2 brings together in a step: the parameters of each unit, as often as it is called, and again backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from selfdistill.methods.sharded import networks_of
from selfdistill.sharding import blocks


class Gathers:
    """Counts while it is entered.

    A unit is a block, or what a network has outside its blocks. Crops of another size are another call of the backbone.

    Attributes:
        bytes: of all units called so far; twice where the call keeps a gradient, whose backward pass gathers again.
    """

    def __init__(self, tower: nn.Module | None) -> None:
        self.bytes = 0
        self._units: list[tuple[nn.Module, int]] = []
        for network in networks_of(tower):
            inside = [(block, parameter_bytes(block)) for block in blocks(network)]
            self._units += [*inside, (network, parameter_bytes(network) - sum(size for _, size in inside))]

    def __enter__(self) -> Gathers:
        self._hooks = [unit.register_forward_pre_hook(partial(self._called, size)) for unit, size in self._units]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _called(self, size: int, *_: Any) -> None:
        self.bytes += 2 * size if torch.is_grad_enabled() else size


def parameter_bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())
