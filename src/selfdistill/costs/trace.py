"""Bytes alive and FLOPs done while a piece of code runs, on any device, the meta device included."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Trace(TorchDispatchMode):
    """Watches every tensor that is made inside, until its storage is freed.

    Attributes:
        alive: bytes of storages made inside that exist now, each counted once.
        peak: greatest ``alive`` so far.
        flops: of products and convolutions, a multiplication and an addition being two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.flops = 0
        self._own: dict[int, Any] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Do not count these, which were there before, when an operation returns them."""
        for tensor in tensors:
            self._watch(tensor, 0)

    def adopt(self, *tensors: Tensor) -> None:
        """Count these, which were there before, until they are freed."""
        for tensor in tensors:
            self._watch(tensor, tensor.untyped_storage().nbytes())

    def add_flops(self, flops: int) -> None:
        self.flops += flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._watch(value, value.untyped_storage().nbytes())
        return out

    def _watch(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._own:
            return
        self._own[key] = weakref.ref(storage, lambda _: self._free(key, size))
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _free(self, key: int, size: int) -> None:
        del self._own[key]
        self.alive -= size
