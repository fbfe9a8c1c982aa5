"""θ_t ← m·θ_t + (1−m)·θ_s, exactly, in one pass over memory."""

from __future__ import annotations

import copy
import math
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from selfdistill.sharding import local

Buffers = Literal["own", "copy", "ema"]
"""What happens to float buffers (batch-norm statistics): the teacher keeps its own, takes the
student's, or averages them. Integer and bool buffers are always copied."""

# Randomness by class: timm's, torchvision's, and a Tower's own. By name, since neither need be installed here.
_RATES = {"DropPath": "drop_prob", "PatchDropout": "prob", "StochasticDepth": "p", "Tower": "noise"}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def make_teacher(student: ModuleT) -> ModuleT:
    """A copy of ``student`` that takes no gradient and draws no random number.

    Parameters are equal bit for bit and have ``requires_grad=False``; dropout and drop path are zeroed,
    so that the teacher may run in train mode (batch statistics) and stay deterministic; the copy is
    returned in eval mode.
    """
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    for part in teacher.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention | nn.RNNBase):
            part.dropout = 0.0
        elif type(part).__name__ in _RATES:
            setattr(part, _RATES[type(part).__name__], 0.0)
    return teacher


class EMA:
    """The update of one teacher by one student, with the tensor lists built once.

    Args:
        teacher: the network that moves.
        student: the network it follows; same parameter and buffer names and shapes.
        buffers: see :data:`Buffers`.

    Raises:
        ValueError: structures differ, or tensors are shared; the message names the parameter.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, buffers: Buffers = "copy") -> None:
        if buffers not in ("own", "copy", "ema"):
            raise ValueError(f"buffers: {buffers!r} given, allowed is own, copy or ema")
        parameters = _matched(_held(teacher), _held(student), "parameter")
        matched = _matched(dict(teacher.named_buffers()), dict(student.named_buffers()), "buffer")
        for name, (t, _) in parameters.items():
            if t.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"teacher: parameter {name!r} is {t.dtype}, allowed is float32: in half precision an "
                    "average with momentum ≥ 0.996 never moves; keep the teacher in float32"
                )
        floating = {n: pair for n, pair in matched.items() if pair[0].is_floating_point()}
        averaged = list(parameters.values()) + (list(floating.values()) if buffers == "ema" else [])
        copied = [pair for n, pair in matched.items() if n not in floating]
        if buffers == "copy":
            copied += floating.values()
        self._teacher = [t for t, _ in averaged]
        self._student = [s for _, s in averaged]
        self._same_dtype = all(t.dtype == s.dtype for t, s in averaged)
        self._copied = [t for t, _ in copied]
        self._copied_from = [s for _, s in copied]

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the teacher once. ``momentum`` 0 copies, 1 leaves everything, buffers included, as it is.

        Args:
            momentum: m in [0, 1].

        Raises:
            ValueError: momentum outside [0, 1].
        """
        if not 0.0 <= momentum <= 1.0 or math.isnan(momentum):
            raise ValueError(f"momentum: {momentum} given, allowed is 0 to 1")
        if momentum == 1.0:
            return
        student = self._student
        if not self._same_dtype:
            student = [s.to(t.dtype) for t, s in zip(self._teacher, student, strict=True)]
        if self._teacher:
            torch._foreach_lerp_(self._teacher, student, 1.0 - momentum)
        if self._copied:
            torch._foreach_copy_(self._copied, self._copied_from)


def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """θ_t ← momentum·θ_t + (1−momentum)·θ_s for all parameters; buffers are copied.

    For a training loop, :class:`EMA` keeps the lists and chooses what happens to buffers.

    Raises:
        ValueError: momentum outside [0, 1], or networks that differ (naming the parameter).
    """
    EMA(teacher, student).update(momentum)


def _held(network: nn.Module) -> dict[str, Tensor]:
    """The parameters by name; where they are sharded, what this process has of them."""
    return {name: local(parameter) for name, parameter in network.named_parameters()}


def _matched(teacher: dict[str, Tensor], student: dict[str, Tensor], kind: str) -> dict[str, tuple[Tensor, Tensor]]:
    for name in [*teacher, *student]:
        if name not in teacher or name not in student:
            owner = "the student" if name not in teacher else "the teacher"
            raise ValueError(f"teacher: {kind} {name!r} exists in {owner} only; both need the same structure")
        t, s = teacher[name], student[name]
        if t.shape != s.shape:
            raise ValueError(
                f"teacher: {kind} {name!r} is {tuple(t.shape)} in the teacher and {tuple(s.shape)} in the "
                "student; both need the same structure"
            )
        if t is s or (t.numel() and t.data_ptr() == s.data_ptr() and not t.is_meta):
            raise ValueError(
                f"teacher: {kind} {name!r} is shared with the student; make the teacher with make_teacher()"
            )
    return {name: (teacher[name], student[name]) for name in teacher}
