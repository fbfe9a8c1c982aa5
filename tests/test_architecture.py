"""The house: who may import whom, and what a bare import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "selfdistill"

# A module may import from its own level and from lower ones (DESIGN §1, rule 1).
LEVELS = [
    {"data", "views", "clock", "schedules", "distributed", "files", "products", "provenance", "sharding"}
    | {"checkpoint_io", "metrics_csv", "text_table", "allocator", "batch_norm_sync", "compatibility"},
    {"networks", "heads"},
    {"targets", "divergences", "regularizers", "optim", "teacher"},
    {"objectives", "methods"},
    {"callbacks", "evaluation", "export", "costs", "sharded_strategy"},
    {"config"},
    {"checkpoint", "report", "resume", "processes"},
    {"assembly", "failures", "run_folder", "unused"},
    {"restore", "estimate"},
    {"runner"},
    {"tasks", "preview", "sweeps", "refusals"},
    {"cli"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
KNOW_HYDRA = {
    "config",
    "assembly",
    "failures",
    "run_folder",
    "estimate",
    "unused",
    "report",
    "restore",
    "runner",
    "tasks",
    "preview",
    "sweeps",
    "cli",
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name != "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_flow_one_way(path: Path) -> None:
    own = LEVEL[room(path)]
    for name in imports(path):
        if name.startswith("selfdistill.") and (other := name.split(".")[1]) != room(path):
            assert LEVEL[other] <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_edge_knows_hydra(path: Path) -> None:
    if room(path) not in KNOW_HYDRA:
        assert not {n.split(".")[0] for n in imports(path)} & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_light() -> None:
    assert not modules_after("import selfdistill") & {"hydra", "wandb", "kornia", "litdata", "matplotlib", "torch"}
    every = "import selfdistill; [getattr(selfdistill, n) for n in selfdistill.__all__]"
    # torchmetrics, which Lightning imports, takes matplotlib where it is installed
    brought = modules_after("import lightning")
    assert not (modules_after(every) - brought) & {"hydra", "omegaconf", "wandb", "kornia", "litdata", "matplotlib"}


def test_the_command_line_waits_for_torch() -> None:
    assert "torch" not in modules_after("import selfdistill.cli")
