"""One process trains in a folder; what a stopped run needs to go on."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from selfdistill.config import UserError, check
from selfdistill.run_folder import claim, continued_by, release


@pytest.fixture
def config() -> DictConfig:
    return check("train", ["ckpt_path=auto"]).config


def locked(folder: Path) -> int:
    """As another process would; raises where one has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, config: DictConfig) -> None:
    folder = tmp_path / "run"
    claim(folder, config)
    with pytest.raises(BlockingIOError):
        locked(folder)
    release(folder)
    other = locked(folder)
    with pytest.raises(UserError, match=r"hydra\.run\.dir: .*run given, another process trains there; wait for"):
        claim(folder, config)
    os.close(other)
    claim(folder, config)
    claim(folder, config)
    release(folder)


def test_a_forked_worker_does_not_keep_the_folder(tmp_path: Path, config: DictConfig) -> None:
    claim(tmp_path, config)
    (wait, go), (there, tell) = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(go)
        os.write(tell, b".")
        os.read(wait, 1)  # until the other end is closed
        os._exit(0)
    try:
        os.read(there, 1)
        release(tmp_path)
        os.close(locked(tmp_path))
    finally:
        for end in (go, wait, there, tell):
            os.close(end)
        os.waitpid(worker, 0)


@pytest.mark.parametrize(
    ("given", "checkpoint", "said"),
    [
        ("auto", "a/last.ckpt", ""),
        (None, "a/last.ckpt", " with ckpt_path=a/last.ckpt"),
        (None, "mein Läuf/last.ckpt", " with 'ckpt_path='\"'\"'mein Läuf/last.ckpt'\"'\"''"),
    ],
)
def test_what_the_same_command_needs_to_go_on(given: Any, checkpoint: str, said: str) -> None:
    assert continued_by(DictConfig({"ckpt_path": given}), Path(checkpoint)) == said
