"""Bytes that each process holds of a DINO ViT-S/16, whole and sharded over 1, 2 and 4 processes; run on CPUs.

python benchmarks/sharding.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from runs import table, write_section
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from selfdistill import DINO
from selfdistill.methods.sharded import shard_towers
from selfdistill.sharding import local

PROCESSES = (1, 2, 4)


def size(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of what this process has of them."""
    held = [local(tensor) for tensor in tensors if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def held(processes: int) -> dict[str, int]:
    """After a step of AdamW; the parts that training keeps, in the order in which they are made."""
    module = DINO("vit_small_patch16_224")
    if processes > 1:
        mesh = init_device_mesh("cpu", (processes,))
        shard_towers(module, module.student, module.teacher, mesh)
    named = module.trained_parameters()
    optimizer = module.optimizer_recipe.build(named, module.parameter_roles(), batch_size=256)
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert module.teacher is not None
    return {
        "student": size(parameter for _, parameter in named),
        "teacher": size(module.teacher.parameters()),
        "gradients": size(parameter.grad for _, parameter in named),
        "optimizer": size(value for state in optimizer.state.values() for value in state.values()),
    }


def rank_main(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if processes > 1:
        rendezvous = f"file://{folder / f'of{processes}'}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
    (folder / f"{processes}.{rank}.json").write_text(json.dumps(held(processes)), encoding="utf-8")
    if processes > 1:
        dist.destroy_process_group()


def main() -> None:
    rows = []
    alone = 0
    with tempfile.TemporaryDirectory() as name:
        for processes in PROCESSES:
            ranks = [
                subprocess.Popen([sys.executable, __file__, str(rank), str(processes), name])
                for rank in range(processes)
            ]
            codes = [rank.wait() for rank in ranks]
            if any(codes):
                raise SystemExit(f"a process of {processes} failed")
            found = [
                json.loads(Path(name, f"{processes}.{rank}.json").read_text(encoding="utf-8"))
                for rank in range(processes)
            ]
            most = max(found, key=lambda parts: sum(parts.values()))
            total = sum(most.values())
            alone = alone or total
            parts = [f"{value / 2**20:.1f}" for value in (*most.values(), total)]
            rows.append([str(processes), *parts, f"{alone / total:.2f}"])
    header = ["processes", "student", "teacher", "gradients", "optimizer", "all, MiB", "times less"]
    write_section(
        "sharding",
        "### Memory per process under `trainer=fsdp2`\n\n"
        "`python benchmarks/sharding.py`: DINO, ViT-S/16, 65,536 prototypes, AdamW, float32. MiB that the fullest "
        "process holds between two steps, summed over its shards; activations and the block that is gathered at a "
        "time are not in it. One process stands for `trainer=ddp` too, where each holds everything.\n\n"
        + table(header, rows),
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        rank_main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
