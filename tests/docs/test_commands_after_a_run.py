"""The commands on the pages that take a run, a file or a folder of the reader's, run on such as are made here."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from documented import OURS, Command, overrides_of
from PIL import Image

from selfdistill import tasks
from selfdistill.config import check, resolved
from selfdistill.data.packing import pack
from selfdistill.networks import build_backbone
from selfdistill.report import report
from selfdistill.runner import fit

AFTER = [c for c in OURS if c.run_after]
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


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A small vision transformer in DINO's layout."""
    state = build_backbone("vit_small_patch16_224").state_dict()
    teacher = {f"backbone.{name.removeprefix('model.')}": value for name, value in state.items()}
    student = {f"module.{name}": value for name, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher}, tmp_path / "dino.pth")
    return tmp_path / "dino.pth"


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
