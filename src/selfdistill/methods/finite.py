"""A loss that became NaN or infinite is noticed without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from selfdistill.distributed import all_reduce_max


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite."""


class FiniteGuard:
    """Counts, on the device, the steps in a row whose loss was not finite."""

    def __init__(self) -> None:
        self._in_a_row = torch.zeros(())
        self._terms: Mapping[str, Tensor] = {}

    def watch(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Remember a step: its scalar ``loss`` and the named ``terms`` of it."""
        self._terms = terms
        bad = ~torch.isfinite(loss.detach())
        self._in_a_row = (self._in_a_row.to(bad.device) + 1) * bad

    def refuse(self, step: int, *, patience: int) -> None:
        """Raise where the last ``patience`` steps or more were bad in any process; this waits for the device.

        Every process has to call, or those that do not raise would wait for the one that did.

        Raises:
            NonFiniteLossError: naming the term, the step and the usual causes.
        """
        if not self._terms or all_reduce_max(self._in_a_row).item() < patience:
            return
        bad = all_reduce_max(torch.stack([~torch.isfinite(term) for term in self._terms.values()]).float())
        name, term = list(self._terms.items())[int(bad.argmax())]
        value = f"{term.item()}" if not torch.isfinite(term) or not bad.any() else "not finite in another process"
        raise NonFiniteLossError(
            f"loss term {name!r} is {value} at step {step}; the usual causes are a learning rate that is too "
            "high (optimizer.lr), a temperature that is too low, or no warm-up (optimizer.warmup)"
        )
