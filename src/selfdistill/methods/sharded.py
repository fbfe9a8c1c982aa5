"""The towers of a module spread over processes."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from selfdistill.heads import DINOHead
from selfdistill.networks import Tower
from selfdistill.sharding import is_sharded, shard


def shard_towers(module: nn.Module, student: Tower, teacher: nn.Module | None, mesh: DeviceMesh) -> None:
    """Shard student and teacher alike, backbone and head each; a second call does nothing.

    Predictors, prototypes outside the towers and tokens stay whole: some are read beside any forward pass.

    Raises:
        ValueError: the student's prototypes are read outside its head.
    """
    if is_sharded(module):
        return
    if any(isinstance(part, DINOHead) and not part.multiplies for part in student.modules()):
        raise ValueError(
            "method.logits: chunks given, allowed with trainer=fsdp2 is whole, since the loss reads the prototypes "
            "outside the head, where they are sharded; set method.logits=whole, or trainer=ddp"
        )
    shard(module, [*networks_of(student), *networks_of(teacher)], mesh)


def networks_of(tower: nn.Module | None) -> list[nn.Module]:
    """What is sharded of a tower, and called as a whole."""
    if tower is None:
        return []
    return [tower.backbone, tower.head] if isinstance(tower, Tower) else [tower]
