"""What a file states is what the code does by itself; where it is not, the reason stands here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from selfdistill.config import CONF, check
from selfdistill.evaluation.figures import backbone_figures, pixel_figures
from selfdistill.teacher import TeacherPolicy

# Methods and optimizers are compared in tests/methods/test_paper_defaults.py and tests/optim/test_recipe.py.
GROUPS = (
    "backbone",
    "callbacks",
    "data",
    "divergence",
    "logger",
    "objective",
    "protocol",
    "teacher",
    "trainer",
    "views",
)
# <file>.<argument>, as a pattern, and why the file does not state the constructor's default.
ON_PURPOSE = {
    r"divergence/kl_reverse: divergence\.direction": "the file is named after it",
    # Lightning's classes, whose defaults are for any run
    r"callbacks/\w+: callbacks\.best\.(filename|monitor|mode)": "best.ckpt is the one of the best validation k-NN",
    r"callbacks/\w+: callbacks\.best\.enable_version_counter": "a run has one best.ckpt, whichever part wrote it",
    r"logger/\w+: logger\.(csv|tensorboard)\.(name|version)": "a run has one folder, without numbered ones inside",
    r"logger/wandb: logger\.wandb\.project": "all runs stand in one project, where wandb would say 'uncategorized'",
    r"trainer/default: trainer\.devices": "one, so that a run is the same on every machine; trainer=ddp takes all",
    r"trainer/(ddp|slurm|fsdp2): trainer\.strategy": "the file is named after it",
    r"trainer/slurm: trainer\.plugins": "saves and queues again before the time ends",
    r"trainer/\w+: trainer\.precision": "Lightning's null means this",
    r"trainer/\w+: trainer\.log_every_n_steps": "Lightning's null means 50, which is more than an epoch of digits",
    r"trainer/\w+: trainer\.num_sanity_val_steps": "Lightning's null means 2, and says nothing of these runs",
    r"trainer/\w+: trainer\.enable_progress_bar": "Lightning's null means this",
    r"trainer/\w+: trainer\.enable_model_summary": "the table of costs says more",
    r"trainer/\w+: trainer\.use_distributed_sampler": "the data module's own divides the images, and can be resumed",
    r"trainer/(ddp|slurm|fsdp2): trainer\.sync_batchnorm": "statistics over the global batch, as the papers have them",
    # a data set's own
    r"data/(folder|imagenet|imagenette|shards): data\.num_workers": "files are read and decoded beside the training",
    r"data/(folder|imagenet|shards): data\.eval_batch_size": "images of 224 pixels need more memory than small ones",
    r"data/(folder|imagenet|imagenette|shards): data\.on_error": "one broken file of a million ends no run",
    # a recipe is what its paper says; the code's own augmentation is none
    r"views/\w+: views\.crops\.\d+\.(count|roles)": "which crops there are, and who sees them, is the recipe",
    r"views/\w+: views\.crops\.\d+\.augment\.\w+": "how they are altered is the recipe",
    r"views/(data2vec|dinov2|ibot|ijepa|msn): views\.masks": "these methods mask",
    r"views/(data2vec|ibot): views\.masks\.(ratio_range|probability|stratified|min_block)": "DINOv2's are the default",
}
# Masks that are no data set's own, and values that only a data set has.
WITHOUT_SCALE = ["data=imagenette", "data.root=tests"]


def compared(group: str, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Each stated argument that its constructor has a default for: its key, the file's value, the code's."""
    own = {"timm": ["backbone.name=resnet10t"]}.get(name, [])
    data = ["data.root=tests"] if group == "data" and name not in ("digits", "shapes") else []
    more = [] if group == "protocol" else data if group == "data" else WITHOUT_SCALE
    command = ("evaluate", ["checkpoint=none"]) if group == "protocol" else ("train", [*own, *more])
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        config = compose(command[0], [*command[1], f"{group}={name}"])
    for path in constructed(group, OmegaConf.to_container(config[group])):
        stated = OmegaConf.select(config, path)
        for argument, default in defaults(get_object(stated["_target_"])):
            if argument in stated and not OmegaConf.is_interpolation(stated, argument):
                yield f"{path}.{argument}", plain(stated[argument]), plain(default)


def constructed(path: str, node: Any) -> Iterator[str]:
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        if "_target_" in node:
            yield path
        for key, item in node.items():
            yield from constructed(f"{path}.{key}", item)


def defaults(made: Any) -> Iterator[tuple[str, Any]]:
    factories = {}
    if is_dataclass(made):
        factories = {f.name: f.default_factory for f in fields(made) if f.default_factory is not MISSING}
    for name, parameter in inspect.signature(made).parameters.items():
        if name in factories:
            yield name, factories[name]()
        elif parameter.default is not inspect.Parameter.empty:
            yield name, parameter.default


def plain(value: Any) -> Any:
    """Lists for tuples, and for a mapping that makes an object what it holds."""
    if isinstance(value, DictConfig):
        return OmegaConf.to_container(value)
    return list(value) if OmegaConf.is_list(value) or isinstance(value, tuple) else value


@cache
def differences(group: str, name: str) -> list[tuple[str, Any, Any]]:
    """But for mappings that state in turn the defaults of a class, where the constructor says None."""
    return [
        (f"{group}/{name}: {key}", stated, default)
        for key, stated, default in compared(group, name)
        if stated != default and not key.endswith("collapse_monitor.thresholds")
    ]


FILES = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_a_file_states_the_defaults_of_the_code_or_says_why_not(group: str, name: str) -> None:
    found = differences(group, name)
    assert [row for row in found if not any(re.fullmatch(pattern, row[0]) for pattern in ON_PURPOSE)] == []


def test_every_exception_is_one() -> None:
    keys = [key for group, name in FILES for key, _, _ in differences(group, name)]
    assert [pattern for pattern in ON_PURPOSE if not any(re.fullmatch(pattern, key) for key in keys)] == []


@pytest.mark.parametrize("function", [backbone_figures, pixel_figures])
def test_the_figures_at_the_end_are_those_of_the_functions(function: Any) -> None:
    stated = check("train", []).plain["evaluation"]
    keywords = {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert stated == {name: plain(parameter.default) for name, parameter in keywords.items()}


def test_the_momentum_has_the_shape_that_a_teacher_has_by_itself() -> None:
    takes = inspect.signature(TeacherPolicy.ema).parameters
    assert check("train", ["method=dino_like"]).plain["schedule"] == {
        n: takes[n].default for n in ("shape", "duration")
    }
