"""Several processes: what cannot work is refused before any of them starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.config import UserError

IN_SWEEP = "SELFDISTILL_SWEEP"
"""Set in the environment of a job of a sweep."""


def is_first() -> bool:
    """Whether this is the process of a machine that speaks to the terminal; known before a process group is."""
    return os.environ.get("LOCAL_RANK") in (None, "0") and os.environ.get("SLURM_LOCALID") in (None, "0")


def speaks() -> bool:
    """Whether a mistake is said here: by the first process while all do the same, then by each, which may be alone."""
    distributed = sys.modules.get("torch.distributed")
    return is_first() or (distributed is not None and distributed.is_available() and distributed.is_initialized())


def refuse_folders_apart(overrides: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse processes that torchrun or srun started and that would each take the folder of its own start time.

    Raises:
        UserError: there are several, and nothing says where the run's folder is.
    """
    started = {"torchrun": environment.get("TORCHELASTIC_RUN_ID") and environment.get("WORLD_SIZE", "1")}
    started["srun"] = environment.get("SLURM_STEP_ID") and environment.get("SLURM_STEP_NUM_TASKS", "1")
    for launcher, processes in started.items():
        if processes not in (None, "", "1") and not any(o.lstrip("+").startswith("hydra.run.dir") for o in overrides):
            raise UserError(
                f"hydra.run.dir: not given, and {launcher} started {processes} processes, which share one folder; set "
                "hydra.run.dir=outputs/<name>"
            )


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse more devices than this machine has, and SLURM's settings outside SLURM.

    Raises:
        UserError: naming the setting.
    """
    plugins = trainer.get("plugins") or []
    if any("SLURM" in str(plugin) for plugin in plugins) and "SLURM_NTASKS" not in os.environ:
        raise UserError(
            "trainer: slurm given, but SLURM started no process here; start with srun in a job "
            "(docs/how_to/multi_gpu.md), or choose trainer=ddp"
        )
    accelerator, devices = trainer.get("accelerator"), trainer.get("devices")
    wanted = len(devices) if isinstance(devices, list) else devices
    count = wanted if isinstance(wanted, int) and not isinstance(wanted, bool) else 1
    there, what = os.cpu_count() or 1, "CPU cores"
    if accelerator in ("cuda", "gpu") or (accelerator == "auto" and count > 1):
        import torch

        metal = accelerator == "gpu" and torch.backends.mps.is_available()
        if accelerator != "auto" and not (torch.cuda.is_available() or metal):
            raise UserError(
                f"trainer.accelerator: {accelerator} given, this machine has no GPU; allowed is cpu or auto; set "
                "trainer.accelerator=cpu"
            )
        if torch.cuda.is_available():
            there, what = torch.cuda.device_count(), "GPUs"
    if count > max(there, 1):
        raise UserError(
            f"trainer.devices: {count} given, this machine has {there} {what}; allowed is 1 to {there}, or auto"
        )


def whole_statistics(trainer: Mapping[str, Any]) -> bool:
    """Whether batch norm can take its statistics over all processes; torch's SyncBatchNorm is for GPUs only."""
    import torch

    return trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
