"""The commands on the pages that take a run, a file, a folder or several processes, run on such as are made here."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from documented import COMMANDS, OURS, Command, overrides_of
from PIL import Image
from read_pages import ROOT

from selfdistill import tasks
from selfdistill.config import check, resolved
from selfdistill.data.packing import pack
from selfdistill.networks import build_backbone
from selfdistill.report import report
from selfdistill.runner import fit

AFTER = [c for c in OURS if c.run_after]
TRAINS = [c for c in COMMANDS if c.trains_on]
# a network is fine-tuned for 20 epochs otherwise
SHORT = {"all": "protocol.finetune.epochs=1"}


def folder_of_images(root: Path, splits: tuple[str, ...]) -> Path:
    for split in splits:
        for number, label in enumerate("ab"):
            for i in range(6):
                file = root / split / label / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (90 * number, 40 + 10 * i, 20)).save(file)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network of timm's on colour images."""
    root = tmp_path_factory.mktemp("after")
    folder, few = root / "run", folder_of_images(root / "images", splits=("train", "val", "test"))
    config = check(
        "train", ["backbone=resnet18", "data=folder", f"data.root={few}", "data.image.size=32", "data.batch_size=4",
                  "data.num_workers=0", "debug=fast", "evaluation.draws=1", "trainer.accelerator=cpu"],
    ).config  # fmt: skip
    config.run_dir = str(folder)
    config.trainer.enable_progress_bar = False
    fit(config)
    return folder


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a method on the digits, made when it is first asked for."""
    root = tmp_path_factory.mktemp("started")

    def run(method: str) -> Path:
        folder = root / method
        if not folder.exists():
            given = [f"method={method}", "debug=fast", "evaluation.draws=1", "trainer.accelerator=cpu"]
            config = check("train", given).config
            config.run_dir = str(folder)
            config.trainer.enable_progress_bar = False
            fit(config)
        return folder

    return run


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A small vision transformer in DINO's layout."""
    return in_dinos_layout("vit_small_patch16_224", tmp_path)


def in_dinos_layout(name: str, folder: Path) -> Path:
    state = build_backbone(name).state_dict()
    teacher = {f"backbone.{name.removeprefix('model.')}": value for name, value in state.items()}
    student = {f"module.{name}": value for name, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher}, folder / "dino.pth")
    return folder / "dino.pth"


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a few images in CIFAR-10's own format."""
    data = torchvision.datasets.CIFAR10
    base = tmp_path / "cifar" / data.base_folder
    base.mkdir(parents=True)
    for name, count in (("train", 40), ("test", 6)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": [n % 2 for n in range(count)]}))
    (base / "meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    monkeypatch.setattr(data, "train_list", [["train", None]])
    monkeypatch.setattr(data, "test_list", [["test", None]])
    monkeypatch.setattr(data, "meta", {"filename": "meta", "key": "label_names", "md5": None})
    return tmp_path / "cifar"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder_of_images(tmp_path / "images", splits=("train",))


@pytest.mark.slow
@pytest.mark.parametrize("command", AFTER, ids=lambda c: f"{c.where} {c.text}")
def test_it_runs(
    command: Command, trained: Path, published: Path, cifar: Path, images: Path, written: Path, tmp_path: Path
) -> None:
    text = command.text
    for pattern, stands in {
        r"outputs/byol_like/<time>|<run[^>]*>": trained, r"<a DINO[^>]*>": published, r"<folder of images>": images,
        r"output=<\w+>": f"output={tmp_path}/made", r"data\.root=<\w+>": f"data.root={cifar}",
    }.items():  # fmt: skip
        text = re.sub(pattern, str(stands), text)
    filled = Command(text, command.where, run=True, titled=False)
    overrides, folders = overrides_of(filled.arguments(cifar), written)
    overrides += [more for protocol, more in SHORT.items() if f"protocol={protocol}" in overrides]
    assert command.ours
    config = check(command.ours, overrides, search_path=folders).config
    if command.ours == "pack":
        pack(**resolved(config))
    else:
        {"evaluate": tasks.evaluate, "export": tasks.export, "report": report}[command.ours](config)
    made = {
        "evaluate": (trained if "<run" in command.text or "<time" in command.text else tmp_path) / "evaluation",
        "export": tmp_path / "made.onnx" if "output=" in text else trained / "export",
        "pack": tmp_path / "made",
        "report": trained / "report.html",
    }[command.ours]
    assert made.exists()


def shortened(command: Command) -> list[str]:
    """Settings behind a command that make it short; a run that is repeated is as short as it was."""
    if command.ours == "preview":
        return []
    more = [] if " --config-path " in command.text else ["debug=fast", "evaluation.draws=1", "trainer.accelerator=cpu"]
    if " data=folder" in command.text or " data=shards" in command.text:
        more += ["data.image.size=32", "data.batch_size=4"]
        more += [] if "data.num_workers=" in command.text else ["data.num_workers=0"]
    # one epoch beyond the end of the run that it continues
    return [*more, "trainer.max_epochs=2"] if re.search(r"ckpt_path=|max_epochs=", command.text) else more


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINS, ids=lambda c: f"{c.where} {c.text}")
def test_it_trains(command: Command, started: Callable[[str], Path], tmp_path: Path) -> None:
    text, splits = command.text, ("train", "val", "test")
    # made where it is named only
    made: dict[str, Callable[[], Path]] = {
        r"outputs/dino_like/<time>": lambda: started("dino_like"),
        r"outputs/byol_like/<time>|<run>": lambda: started("byol_like"),
        r"<a published [^>]*>": lambda: in_dinos_layout("resnet50", tmp_path),
        r"<that folder[^>]*>": lambda: packed(folder_of_images(tmp_path / "images", splits), tmp_path / "shards"),
        r"<folder[^>]*>": lambda: folder_of_images(tmp_path / "images", splits),
        r"/data/my ümages": lambda: folder_of_images(tmp_path / "my ümages", splits),
    }
    for pattern, make in made.items():
        if re.search(pattern, text):
            text = re.sub(pattern, str(make()), text)
    assert "<" not in text
    run, picture = tmp_path / "run", tmp_path / "views.png"
    to = f"output={picture}" if command.ours == "preview" else f"hydra.run.dir={run}"
    done = subprocess.run(
        [sys.executable, *shlex.split(text)[1:], *shortened(command), to],
        cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if command.ours == "preview":
        assert picture.is_file()
        return
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert ("ckpt_path=" in text) == bool(summary.get("continued"))
    assert (run / "report.html").is_file()


def packed(folder: Path, shards: Path) -> Path:
    pack(**resolved(check("pack", [f"source={folder}", f"output={shards}", "num_workers=1"]).config))
    return shards
