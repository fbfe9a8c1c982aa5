"""What a GPU's kernels would do in the place of the meta device's: fused attention, and autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TORCH_AUTOCAST = torch.autocast

# Of CUDA's autocast lists, what networks of this package and timm's call; losses compute in float32 by themselves.
_HALF = {F.linear, F.conv1d, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.mm, torch.addmm,
         F.scaled_dot_product_attention}  # fmt: skip
_FLOAT = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.normalize, Tensor.softmax, Tensor.norm}


class Kernels(TorchFunctionMode):
    """Attention that keeps q, k, v, its output and one number a row; products in ``half`` where that is given.

    The meta device would run attention as plain products and keep the [B, H, N, N] probabilities, and it knows no
    autocast.

    Args:
        count: is called with the FLOPs of attention.
        half: float16 or bfloat16, as ``torch.autocast`` on CUDA; None for float32.
    """

    def __init__(self, count: Callable[[int], None], half: torch.dtype | None = None) -> None:
        super().__init__()
        self.count = count
        self.half = half
        self._copies: dict[int, Tensor] | None = {}

    def __enter__(self) -> Kernels:
        self._patches = ExitStack()
        # torch knows no autocast on the meta device, and refuses to turn it off there
        self._patches.enter_context(patch.object(torch, "autocast", self._autocast))
        # the step is that of one process: others would wait for what is never sent
        self._patches.enter_context(patch.object(torch.distributed, "is_initialized", lambda: False))
        return cast(Kernels, super().__enter__())

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._patches.close()

    def _autocast(self, device_type: str, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        if device_type != "meta":
            return _TORCH_AUTOCAST(device_type, *args, **kwargs)
        return nullcontext() if kwargs.get("enabled", True) else self.full_precision()

    def end_of_forward(self) -> None:
        """Where autocast drops the copies that it kept of parameters, but for those that the graph holds."""
        self._copies = None

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Autocast off, as in losses."""
        half, self.half = self.half, None
        try:
            yield
        finally:
            self.half = half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.half is not None and func in _HALF:
            args, kwargs = _each(self._to_half, args), {k: _each(self._to_half, v) for k, v in kwargs.items()}
        elif self.half is not None and func in _FLOAT:
            args, kwargs = _each(_to_float, args), {k: _each(_to_float, v) for k, v in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            return _Attention.apply(query, key, value, self.count)
        return func(*args, **kwargs)

    def _to_half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self._copies is None or not (value.is_leaf and value.requires_grad):
            return value.to(self.half)
        # autocast casts a parameter once
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(self.half)
        return self._copies[id(value)]


def _to_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


class _Attention(torch.autograd.Function):
    """Shapes and FLOPs of FlashAttention (arXiv 2205.14135): two products forward, five backward; no values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, count: Callable[[int], None]) -> Tensor:
        *batch, rows, _ = query.shape
        out = query.new_empty(batch[0], rows, *batch[1:], value.shape[-1]).movedim(1, -2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(*batch, rows, dtype=torch.float32))
        product = 2 * query.numel() * key.shape[-2]
        ctx.count, ctx.product = count, product
        count(2 * product)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        ctx.count(5 * ctx.product)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
