"""Signals that ask a run to end: it saves between two steps, and ends with the code or call that SLURM knows."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from killing import SHORT, said, train

COMMAND = ("method=byol_like", *SHORT)
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "pretrain",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A SLURM job's variables, and a ``scontrol`` that writes down what it is called with."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\nexit ${{SCONTROL_FAILS:-0}}\n')
    (tools / "scontrol").chmod(0o755)
    return {**JOB, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}


def calls(folder: Path) -> str:
    return (folder / "calls").read_text() if (folder / "calls").exists() else ""


def test_sigterm_saves_and_exits_with_143(tmp_path: Path, cluster: dict[str, str]) -> None:
    """In the middle of an accumulation of a SLURM job: pre-empted or cancelled, so nothing is requeued from here."""
    run = tmp_path / "run"
    code = train(COMMAND, run, ("forward", 3), with_signal=signal.SIGTERM, environment=cluster)
    assert code == 128 + signal.SIGTERM, said(run)
    assert f"stopped by SIGTERM: the same command with ckpt_path={run}/checkpoints/last.ckpt continues it" in said(run)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not (run / "hpc_ckpt_1.ckpt").exists()
    assert calls(tmp_path) == ""


def test_slurms_warning_saves_between_two_steps_and_requeues_the_job(tmp_path: Path, cluster: dict[str, str]) -> None:
    run = tmp_path / "run"
    code = train(COMMAND, run, ("forward", 3), with_signal=signal.SIGUSR1, environment=cluster)
    assert code == 128 + signal.SIGUSR1, said(run)
    assert "stopped by SIGUSR1, job 4711 is requeued: " in said(run)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    # Lightning's own handler would have written this one in the middle of the step
    assert not list(run.glob("hpc_ckpt*"))
    assert calls(tmp_path) == "requeue 4711\n"


@pytest.mark.slow
def test_a_requeue_that_fails_is_said(tmp_path: Path, cluster: dict[str, str]) -> None:
    run, array = tmp_path / "run", {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SCONTROL_FAILS": "1"}
    code = train(COMMAND, run, ("forward", 3), with_signal=signal.SIGUSR1, environment=cluster | array)
    assert code == 128 + signal.SIGUSR1, said(run)
    assert "job 12_3 is not requeued (scontrol: exit code 1): " in said(run)
    assert calls(tmp_path) == "requeue 12_3\n"
