"""Settings that do not go with networks spread over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.config.errors import UserError, shown

STRATEGY = "selfdistill.sharded_strategy.ShardedStrategy"


def check_sharded(plain: Mapping[str, Any]) -> None:
    """Refuse what ``trainer=fsdp2`` cannot do, before there is a folder or a process.

    Raises:
        UserError: naming the setting.
    """
    trainer = plain.get("trainer") or {}
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping) or strategy.get("_target_") != STRATEGY:
        return
    if trainer.get("gradient_clip_val"):
        raise UserError(
            f"trainer.gradient_clip_val: {shown(trainer['gradient_clip_val'])} given, allowed with trainer=fsdp2 is "
            "null: it takes sharded and whole gradients together; use optimizer.clip"
        )
    if (plain.get("method") or {}).get("logits") == "chunks":
        raise UserError(
            "method.logits: 'chunks' given, allowed with trainer=fsdp2 is whole, since the loss reads the prototypes "
            "outside the head, where they are sharded; set method.logits=whole, or trainer=ddp"
        )
