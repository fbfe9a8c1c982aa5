"""Asking SLURM to run this job again."""

from __future__ import annotations

import os
import subprocess


def requeue() -> str:
    """``scontrol requeue`` of the job that this process belongs to; what came of it, in words."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"job {job} is not requeued (scontrol: {error.strerror})"
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"scontrol: exit code {done.returncode}"
        return f"job {job} is not requeued ({said})"
    return f"job {job} is requeued"
