"""Every example runs as it stands, here and, slowly, from the built wheel without the repository."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import lightning as L
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
QUIET = [f"--trainer.{key}=false" for key in ("enable_progress_bar", "enable_checkpointing", "logger")]
QUIET += ["--trainer.accelerator=cpu"]
ARGUMENTS = {
    "lightning_cli": ["fit", "--model.width=32", "--trainer.max_epochs=1", *QUIET],
    "other_hydra_project": [
        "method=dino_like", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu",
        "project.reviewer=somebody", "hydra.run.dir=run",
    ],
}  # fmt: skip
PRINTS = {
    "own_backbone": r"loss \d.*features \(2, 32\)",
    "own_divergence": r"loss \d",
    "own_method": r"loss \d",
    "foreign_module": r"(?=.*val/knn)(?=.*val/probe)(?=.*monitor/std)(?=.*teacher/momentum)",
    "auxiliary_loss": r"(?=.*train/supervised)(?=.*train/ssl)",
    "fabric_loop": r"16 steps, loss \d",
    "lightning_cli": r"",
    "other_hydra_project": r"somebody: DINO, loss \d",
}


def test_each_example_is_expected_to_print_something() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    L.seed_everything(0, verbose=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *ARGUMENTS.get(name, [])])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="collapse monitor")
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(PRINTS[name], capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if name == "other_hydra_project" else [])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked where nothing else lies."""
    folder = tmp_path_factory.mktemp("wheel")
    # a copy: building leaves folders behind, and would pack files that an earlier build left
    source = folder / "source"
    for name in ("src", "conf"):
        leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leftovers)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("selfdistill-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def outside(installed: Path, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a Python that finds the package in the wheel alone, away from the repository."""
    # the editable installation is a finder or a path of the interpreter's own; ours stands first and is checked
    guard = f"import selfdistill; assert selfdistill.__file__.startswith({str(installed)!r}), selfdistill.__file__; "
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", guard + code, *arguments],
        cwd=folder, env={**environment, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_wheel_holds_what_it_needs(installed: Path) -> None:
    package = installed / "selfdistill"
    assert (package / "py.typed").is_file()
    of_repository = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    assert {p.relative_to(package / "conf") for p in (package / "conf").rglob("*.yaml")} == of_repository
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    commands = points.read_text(encoding="utf-8")
    for name in ("train", "evaluate", "export"):
        assert f"selfdistill-{name} = selfdistill.cli:{name}" in commands


@pytest.mark.slow
def test_train_evaluate_export_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    def call(command: str, *arguments: str) -> str:
        done = outside(installed, tmp_path, f"from selfdistill.cli import {command}; {command}()", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("train", "debug=fast", "evaluation.draws=2", "trainer.accelerator=cpu", "hydra.run.dir=run")
    assert "k=20" in call("evaluate", "checkpoint=run", "protocol=knn")
    assert "written" in call("export", "checkpoint=run")
    assert (tmp_path / "run" / "export" / "safetensors" / "backbone.safetensors").is_file()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_examples_from_the_wheel(name: str, installed: Path, tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({str(EXAMPLES / f'{name}.py')!r}, run_name='__main__')"
    done = outside(installed, tmp_path, code, *ARGUMENTS.get(name, []))
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTS[name], done.stdout)
