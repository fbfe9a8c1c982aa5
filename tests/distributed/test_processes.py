"""What cannot work with several processes is refused in one line, before any of them starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from selfdistill.assembly import build_method, build_trainer
from selfdistill.cli import _end
from selfdistill.config import CONF, UserError, check
from selfdistill.methods.sharded import shard_towers
from selfdistill.processes import check_devices, refuse_folders_apart
from selfdistill.runner import fit
from selfdistill.sharded_strategy import ShardedStrategy

TRAINERS = sorted(path.stem for path in (CONF / "trainer").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)


def test_the_choices() -> None:
    assert set(TRAINERS) >= {"default", "ddp", "fsdp2", "slurm"}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_choice_has_the_settings_of_the_default(trainer: str) -> None:
    default = check("train", []).plain["trainer"]
    assert check("train", [f"trainer={trainer}"]).plain["trainer"].keys() >= default.keys()


@pytest.mark.parametrize(("trainer", "kind"), [("ddp", DDPStrategy), ("fsdp2", ShardedStrategy)])
def test_the_strategy_is_that_of_the_name(trainer: str, kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    config = check("train", [f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2"]).config
    config.run_dir = "unused"
    built = build_trainer(config, [])
    assert isinstance(built.strategy, kind)
    assert built.world_size == 2
    # torch has no synchronised batch norm on a CPU
    assert "trainer.sync_batchnorm" in capsys.readouterr().err
    assert config.trainer.sync_batchnorm is False


def test_slurm_gives_nodes_and_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NNODES", "3")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    trainer = check("train", ["trainer=slurm"]).plain["trainer"]
    assert (trainer["num_nodes"], trainer["devices"]) == (3, 8)
    monkeypatch.setenv("SLURM_NTASKS", "24")
    check_devices({**trainer, "devices": 1})
    monkeypatch.delenv("SLURM_NTASKS")
    with pytest.raises(UserError, match="trainer: slurm given, but SLURM started no process here"):
        check_devices(trainer)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"accelerator": "cpu", "devices": 10_000}, "trainer.devices: 10000 given, this machine has"),
        ({"accelerator": "cuda", "devices": 999}, "trainer.(devices: 999 given|accelerator: cuda given)"),
    ],
)
def test_more_devices_than_there_are(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_devices(settings)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_named(accelerator: str) -> None:
    with pytest.raises(UserError, match=f"trainer.accelerator: {accelerator} given, this machine has no GPU; allowed"):
        check_devices({"accelerator": accelerator, "devices": 1})
    with pytest.raises(UserError, match="trainer.devices: 10000 given, this machine has .* CPU cores"):
        check_devices({"accelerator": "auto", "devices": 10_000})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("trainer.devices=10000", "trainer.devices: 10000 given"),
        ("trainer=slurm", "trainer: slurm given, but SLURM started no process here"),
        ("method=msn_like backbone=small_cnn", "backbone: small_cnn given to MSN"),
    ],
)
def test_a_command_that_cannot_work_leaves_no_folder(overrides: str, says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "src.train", *overrides.split(), f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_cost_can_be_asked_for_devices_that_are_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "src.train", "cost_only=true", "trainer=ddp", "trainer.devices=64", "data=imagenet",
         "trainer.accelerator=gpu", "method=byol_like", f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_one_device_is_always_there() -> None:
    for devices in (1, "auto", "1", None, -1):
        check_devices({"accelerator": "auto", "devices": devices})


def test_the_same_mistake_of_all_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        with pytest.raises(SystemExit, match="2"):
            _end("error: a mistake", 2)
        return capsys.readouterr().err

    assert said() == "error: a mistake\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert said() == ""
    # together, a process may be the only one that fails
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert said() == "error: a mistake\n"


@pytest.mark.parametrize(
    ("environment", "overrides", "refused"),
    [
        ({}, [], False),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, [], True),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, ["hydra.run.dir=outputs/x"], False),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}, [], False),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, ["method=dino_like"], True),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, [], False),
    ],
)
def test_processes_from_outside_share_a_folder(
    environment: dict[str, str], overrides: list[str], refused: bool
) -> None:
    if refused:
        with pytest.raises(UserError, match=r"hydra.run.dir: not given, and (torchrun|srun) started"):
            refuse_folders_apart(overrides, environment)
    else:
        refuse_folders_apart(overrides, environment)


CLIPPED = r"^trainer\.gradient_clip_val: 1\.0 given, allowed with trainer=fsdp2 is null.*use optimizer\.clip$"
CHUNKS = r"^method\.logits: '?chunks'? given, allowed with trainer=fsdp2 is whole.*, or trainer=ddp$"


@pytest.mark.parametrize(
    ("settings", "says"),
    [(("+trainer.gradient_clip_val=1.0",), CLIPPED), (("method=dino_like", "method.logits=chunks"), CHUNKS)],
)
def test_what_shards_cannot_do_is_refused_before_there_is_a_folder(
    settings: tuple[str, ...], says: str, compose: Any
) -> None:
    with pytest.raises(UserError, match=says):
        check("train", ["trainer=fsdp2", *settings])
    # from Python, where nothing was checked before
    config = compose(*settings)
    config.trainer.strategy = {"_target_": "selfdistill.sharded_strategy.ShardedStrategy"}
    with pytest.raises(UserError, match=says):
        fit(config)
    assert not Path(config.run_dir).exists()
    # and with any other strategy it goes
    check("train", ["trainer=ddp", *settings])


def test_a_trainer_of_ones_own_refuses_them_as_well(compose: Any) -> None:
    with pytest.raises(ValueError, match=CLIPPED):
        ShardedStrategy().setup(SimpleNamespace(gradient_clip_val=1.0))  # type: ignore[arg-type]
    module = build_method(compose("method=dino_like", "method.logits=chunks"))
    with pytest.raises(ValueError, match=CHUNKS):
        shard_towers(module, module.student, module.teacher, None)  # type: ignore[arg-type]
