"""From a checkpoint to figures: the right network, the right data, files that are whole, refusals of one line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from selfdistill import tasks
from selfdistill.assembly import build_data
from selfdistill.config import UserError, check, resolved
from selfdistill.data.images import IMAGENET_MEAN, IMAGENET_STD
from selfdistill.data.sources import TorchvisionSet
from selfdistill.networks import build_backbone
from selfdistill.restore import restore
from selfdistill.runner import fit

ROOT = Path(__file__).parents[1]
QUICK = ("protocol.knn.ks=[1,20,5000]", "protocol.knn.temperatures=[0.07]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a method that evaluates its teacher."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    config = check(
        "train", ["method=ema_teacher", "debug=fast", "evaluation.draws=20", "trainer.accelerator=cpu"]
    ).config
    config.run_dir = str(folder)
    config.trainer.enable_progress_bar = False
    fit(config)
    return folder


def evaluate(*overrides: str) -> float | None:
    return tasks.evaluate(check("evaluate", list(overrides)).config)


def figures(path: Path) -> dict[tuple[str, str], float]:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {(f["protocol"], f["setting"]): f["value"] for f in stored["figures"]}


def test_figures_are_those_that_the_run_ended_with(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(f"checkpoint={run}", "protocol=[knn,few_shot]", *QUICK)
    (written,) = (run / "evaluation").glob("*.json")
    assert written.name == "last-teacher-digits-knn+few_shot.json"
    found = figures(written)
    own = json.loads((run / "summary.json").read_text(encoding="utf-8"))["figures"]["trained"]
    assert found["knn", "k=20 temperature=0.07"] == own["knn"]
    assert found["few_shot", "1 shot"] == pytest.approx(own["one_shot"])
    assert found["few_shot", "5 shots"] == pytest.approx(own["five_shot"])
    assert ("knn", "k=1204 temperature=0.07") in found  # the whole bank stands for a larger k
    about = json.loads(written.read_text(encoding="utf-8"))
    assert about["network"] == "teacher"
    assert about["method"] == "EMATeacher"
    assert about["step"] == 2
    assert about["classes_absent_from_train"] == []
    with open(written.with_suffix(".csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(r["protocol"], r["setting"]): float(r["value"]) for r in rows} == found
    assert "k=20" in capsys.readouterr().out
    assert not list((run / "evaluation").glob("part-*"))


def test_the_other_network_is_evaluated_on_request(run: Path, tmp_path: Path) -> None:
    accuracies = {
        network: evaluate(
            f"checkpoint={run}", "protocol=geometry", f"network={network}", f"output={tmp_path}/{network}.json"
        )
        for network in ("student", "teacher", "null")
    }
    assert accuracies["teacher"] == accuracies["null"] != accuracies["student"]


def test_every_protocol_runs(run: Path, tmp_path: Path) -> None:
    shorter = ("finetune.epochs=1", "few_shot.fractions=[0.01]", "linear.solver=sgd", "linear.epochs=2")
    given = [f"protocol.{setting}" for setting in shorter]
    evaluate(f"checkpoint={run}/checkpoints/last.ckpt", f"output={tmp_path}/all.json", *given, *QUICK)
    assert {protocol for protocol, _ in figures(tmp_path / "all.json")} == {
        "knn", "linear", "few_shot", "finetune", "geometry"
    }  # fmt: skip


def folder_of_images(root: Path, splits: dict[str, list[str]]) -> Path:
    for split, classes in splits.items():
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (40 * label, 10 * i, 99)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for three channels."""
    root = tmp_path_factory.mktemp("colour")
    images = folder_of_images(root / "images", {"train": ["a", "b"], "val": ["a", "b"], "test": ["a", "b"]})
    config = check(
        "train",
        ["debug=fast", "data=folder", f"data.root={images}", "data.image.size=16", "data.batch_size=4",
         "data.num_workers=0", "backbone=small_cnn", "method.hidden_dim=8", "method.out_dim=4",
         "trainer.accelerator=cpu", "evaluation.draws=2"],
    ).config  # fmt: skip
    config.run_dir = str(root / "run")
    config.trainer.enable_progress_bar = False
    fit(config)
    return root / "run"


def test_another_data_set_normalised_as_the_network_knows_it(colour_run: Path, tmp_path: Path) -> None:
    other = folder_of_images(tmp_path / "other", {"train": ["x", "y", "z"], "val": ["x", "y"], "test": ["y", "z"]})
    given = ["data=folder", f"data.root={other}", "data.image.size=16", "data.num_workers=0"]
    config = check("evaluate", [f"checkpoint={colour_run}", *given]).config
    restored = restore(str(colour_run))
    # as if it had been trained on CIFAR-10, whose files are not needed for its mean and deviation
    source = {"_target_": "selfdistill.data.TorchvisionSet", "name": "cifar10", "root": "."}
    restored.config.data.source = OmegaConf.create(source)
    _, data = tasks.evaluation_data(restored, config)
    images, _ = next(iter(data.evaluation_loader("train")))
    black = (torch.zeros(3) - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.2470, 0.2435, 0.2616])
    torch.testing.assert_close(images[0, :2, 0, 0], black[:2])  # no red, no green in the first image
    assert {int(y) for _, labels in data.evaluation_loader("train") for y in labels} == {0, 1, 2}
    evaluate(f"checkpoint={colour_run}", "protocol=knn", *QUICK, *given, f"output={tmp_path}/other.json")
    assert ("knn", "k=9 temperature=0.07") in figures(tmp_path / "other.json")


def test_a_run_whose_newest_checkpoint_is_torn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    (folder / "previous.ckpt").write_bytes(whole)
    assert restore(str(tmp_path)).checkpoint == folder / "previous.ckpt"
    assert "last.ckpt is missing; taking the one before it" in capsys.readouterr().err
    (folder / "last.ckpt").write_bytes(whole[:1000])
    assert restore(str(tmp_path)).checkpoint == folder / "previous.ckpt"
    assert "last.ckpt' given, not a readable checkpoint" in capsys.readouterr().err
    # a file that is named is that file
    with pytest.raises(UserError, match="last.ckpt' given, not a readable checkpoint"):
        restore(str(folder / "last.ckpt"))


def test_refusals_are_one_line_and_write_nothing(run: Path, colour_run: Path, tmp_path: Path) -> None:
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for i in range(30):
        Image.new("RGB", (16, 16)).save(unlabelled / f"{i}.png")
    labelled = folder_of_images(tmp_path / "labelled", {"train": ["a", "b"], "val": ["a"], "test": ["a", "b"]})
    folder = ["data=folder", "data.image.size=16", "data.num_workers=0"]
    for overrides, says in (
        ([f"checkpoint={tmp_path}/none.ckpt"], "no such file"),
        ([f"checkpoint={tmp_path}"], "a folder without checkpoints/last.ckpt"),
        ([f"checkpoint={run}", "network=both"], "network: 'both' given"),
        ([f"checkpoint={run}", "protocol.linear.solver=svm"], "protocol.linear.solver: 'svm' given"),
        ([f"checkpoint={run}", *folder, f"data.root={labelled}"], "3 channels, the network takes 1"),
        ([f"checkpoint={colour_run}", *folder, f"data.root={unlabelled}"], "no labels"),
        ([f"checkpoint={colour_run}", *folder, f"data.root={labelled}", "data.image.classes=1"], "have 2 classes"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            evaluate(*overrides, f"output={tmp_path}/out/x.json")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="checkpoint: not given"):
        evaluate("protocol=knn")


def test_training_refuses_a_wrong_number_of_classes_too() -> None:
    with pytest.raises(UserError, match=r"^data\.image\.classes: 5 given, the train images have 10 classes; set 10$"):
        build_data(check("train", ["data.image.classes=5"]).config)


def test_a_checkpoint_that_does_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    stored: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)

    def saved(**changes: Any) -> str:
        torch.save({**stored, **changes}, tmp_path / "changed.ckpt")
        return str(tmp_path / "changed.ckpt")

    state = dict(stored["state_dict"])
    first = next(iter(state))
    short = {name: value for name, value in state.items() if name != first}
    config = json.loads(json.dumps(stored["selfdistill"]["config"]))
    config["method"]["_target_"] = "selfdistill.methods.OfTheFuture"
    about = stored["selfdistill"]
    for changes, says in (
        ({"state_dict": short}, rf"{first!r} is missing in it \(1 of"),
        ({"state_dict": {**state, "extra": state[first]}}, "'extra' is not known"),
        ({"state_dict": {**state, first: state[first].flatten()[:1]}}, "has another shape"),
        ({"selfdistill": {**about, "method": "BYOL"}}, "says BYOL, its configuration builds EMATeacher"),
        ({"selfdistill": {**about, "config": config, "version": "9.1"}}, "cannot be built .* selfdistill 9.1, this is"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            restore(saved(**changes))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a small backbone in DINO's layout."""
    root = tmp_path_factory.mktemp("published")
    folder_of_images(root / "images", {"train": ["a", "b"], "val": ["a", "b"], "test": ["a", "b"]})
    torch.manual_seed(0)
    state = build_backbone("small_vit", image_size=16, patch_size=4).state_dict()
    inside = {name.removeprefix("model."): value for name, value in state.items()}
    teacher = {f"backbone.{name}": value for name, value in inside.items()} | {"head.mlp.0.weight": torch.ones(2)}
    student = {f"module.backbone.{name}": torch.zeros_like(value) for name, value in inside.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, root / "dino.pth")
    torch.save({"some": torch.ones(2), "other": torch.ones(2)}, root / "else.pth")
    (root / "text.pth").write_text("no checkpoint", encoding="utf-8")
    return root


def images_of(published: Path) -> list[str]:
    sizes = ["data.image.size=16", "data.image.patch=4", "data.num_workers=0"]
    return ["data=folder", f"data.root={published}/images", *sizes, "backbone=small_vit", "protocol=knn", *QUICK]


def test_a_published_file_is_evaluated_with_the_backbone_it_was_made_with(published: Path) -> None:
    evaluate(f"checkpoint={published}/dino.pth", *images_of(published))
    written = published / "evaluation" / "dino-published-folder-knn.json"
    about = json.loads(written.read_text(encoding="utf-8"))
    assert (about["method"], about["network"], about["images"]) == ("dino", "published", {"train": 6, "test": 6})
    cifar = TorchvisionSet("cifar10", ".")
    assert (
        tasks.normalisation(published / "dino.pth", cifar) == (IMAGENET_MEAN, IMAGENET_STD) != (cifar.mean, cifar.std)
    )
    config = check("evaluate", [f"checkpoint={published}/dino.pth", *images_of(published)]).config
    restored = tasks.evaluated(config, resolved(config))
    stored = torch.load(published / "dino.pth", weights_only=True)["teacher"]
    own = restored.module.state_dict()
    assert torch.equal(own["student.backbone.model.cls_token"], stored["backbone.cls_token"])
    _, data = tasks.evaluation_data(restored, config)
    images, _ = next(iter(data.evaluation_loader("train")))
    assert float(images[0, 0, 0, 0]) == pytest.approx((0 - 0.485) / 0.229)  # black, as ImageNet's networks know it


def test_our_own_backbone_file_is_normalised_as_it_says(run: Path, tmp_path: Path) -> None:
    given = ["backbone=small_cnn", "data=digits", "protocol=geometry"]
    evaluate(f"checkpoint={run}/backbone.safetensors", *given, f"output={tmp_path}/file.json")
    evaluate(f"checkpoint={run}", "protocol=geometry", f"output={tmp_path}/run.json")
    assert figures(tmp_path / "file.json") == pytest.approx(figures(tmp_path / "run.json"))


def test_published_files_are_refused_in_one_line(published: Path, run: Path, tmp_path: Path) -> None:
    known = images_of(published)
    # a run of ours says itself how it cuts images
    without = [setting for setting in known if not setting.startswith(("backbone=", "data.image.patch="))]
    for overrides, says in (
        (
            [f"checkpoint={published}/dino.pth", *known, "data.image.patch=8"],
            "checkpoint: a dino checkpoint of another",
        ),
        ([f"checkpoint={published}/else.pth", *known], r"checkpoint: no known layout \(its first keys: some, other\)"),
        ([f"checkpoint={published}/text.pth", *known], "checkpoint: text.pth cannot be read"),
        ([f"checkpoint={published}/none.pth", *known], "checkpoint: .* no such file"),
        ([f"checkpoint={run}", *known], "a folder; with backbone=small_vit allowed is a published file"),
        ([f"checkpoint={published}/dino.pth", *known, "network=teacher"], "network: teacher given"),
        ([f"checkpoint={published}/dino.pth", *without], "a file of others needs backbone="),
        ([f"checkpoint={published}/text.pth", *without], "a file of others needs backbone="),
        (
            [f"checkpoint={published}/dino.pth", "backbone=small_vit"],
            "it takes data.image.channels, which is not there",
        ),
    ):
        with pytest.raises(UserError, match=says) as caught:
            evaluate(*overrides, f"output={tmp_path}/out/x.json")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_find_the_figures_of_one(run: Path, tmp_path: Path, processes: int) -> None:
    evaluate(f"checkpoint={run}", "protocol=[knn,few_shot,geometry]", *QUICK, f"output={tmp_path}/one.json")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "src.evaluate",
    ]
    done = subprocess.run(
        [*command, f"checkpoint={run}", "protocol=[knn,few_shot,geometry]", *QUICK, f"output={tmp_path}/all.json"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, all_ = figures(tmp_path / "one.json"), figures(tmp_path / "all.json")
    assert one == pytest.approx(all_, abs=1e-6)
