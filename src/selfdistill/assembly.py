"""From a configuration to objects, in the order in which data flows through them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf

from selfdistill.batch_norm_sync import BatchNormSync
from selfdistill.callbacks import (
    CostMeter,
    EpochLines,
    GracefulInterrupt,
    History,
    ProgressBar,
    TeacherUpdate,
    TemperatureLog,
)
from selfdistill.checkpoint import foreign_target, read_checkpoint
from selfdistill.checkpoint_io import LAST, AtomicCheckpointIO
from selfdistill.compatibility import refuse_divergence
from selfdistill.config import UserError
from selfdistill.config.named import made, named
from selfdistill.data import DataModule, Split
from selfdistill.data.sources import SPLITS
from selfdistill.evaluation.features import evaluating
from selfdistill.methods import SelfDistillModule
from selfdistill.methods.parts import check_read_masks
from selfdistill.optim.checks import check_roles
from selfdistill.processes import check_devices, is_first, whole_statistics
from selfdistill.report.refresh import RefreshReport
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import ViewRecipe


def build_data(config: DictConfig) -> DataModule:
    """The data module of ``config.data`` with the views of ``config.views``."""
    recipe: ViewRecipe = made("views", config.views)
    facts = ("image", "root", "download")
    settings = {key: value for key, value in config.data.items() if key not in facts}
    if micro_batches(config) > 1:
        settings["micro_batches"] = micro_batches(config)
    with named("data", settings):
        datamodule: DataModule = made("data", settings, _partial_=True)(recipe=recipe, seed=config.seed)
        datamodule.setup("fit")
    check_classes(datamodule, OmegaConf.select(config, "data.image.classes"), SPLITS if datamodule.labelled else ())
    return datamodule


def check_classes(datamodule: DataModule, classes: int | None, splits: Sequence[Split]) -> None:
    """Refuse labels beyond ``classes``; None is not checked."""
    if classes is None:
        return
    for split in splits:
        loader: Any = datamodule.evaluation_loader(split)
        most = int(loader.dataset.images.labels.max()) + 1
        if most > classes:
            raise UserError(f"data.image.classes: {classes} given, the {split} images have {most} classes; set {most}")


def build_method(config: DictConfig) -> SelfDistillModule[Any, Any]:
    """The method of ``config.method`` from the parts that the other groups describe."""
    target = _method_class(config.method._target_)
    parts: dict[str, Any] = {"backbone": made("backbone", config.backbone)}
    divergence = made("divergence", config.divergence) if config.get("divergence") else None
    if "divergence" in inspect.signature(target).parameters:
        parts["divergence"] = divergence
    elif divergence is not None:
        refuse_divergence(target.__name__, type(divergence).__name__)
    parts["teacher"] = build_teacher(config)
    parts["optimizer"] = made("optimizer", config.optimizer)
    weights = dict(config.weights)
    parts["objectives"] = {}
    for name, node in config.objective.items():
        if name != "weight" and OmegaConf.is_dict(node):
            own = {key: value for key, value in node.items() if key != "weight"}
            parts["objectives"][name] = made(f"objective.{name}", own)
            weights.setdefault(name, node.weight)
    parts["weights"] = {
        n: value if isinstance(value, int | float) else made(f"weights.{n}", value) for n, value in weights.items()
    }
    # resolved before it is taken out of the configuration: parts of it refer to others
    settings: Any = OmegaConf.to_container(config.method, resolve=True)
    settings.pop("paper", None)
    # called here, not by Hydra, which would turn the dataclasses among the parts into configs
    make = made("method", settings, _partial_=True)
    with named("method", settings):
        module: SelfDistillModule[Any, Any] = make(**parts)
    with named("optimizer", config.optimizer):
        check_roles(module.optimizer_recipe, module.parameter_roles())
    module.student.noise = float(OmegaConf.select(config, "student.noise", default=0.0))
    return module


def _method_class(path: str) -> type[SelfDistillModule[Any, Any]]:
    folder, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(folder), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"method._target_: {path!r} given, which cannot be imported ({str(error).splitlines()[0]}); "
            "give <module>.<class>, and have the module's folder on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, SelfDistillModule)):
        raise UserError(f"method._target_: {path!r} given, allowed is a subclass of selfdistill.SelfDistillModule")
    return found


def micro_batches(config: DictConfig) -> int:
    """How many of ``data.batch_size`` the loader joins into one batch: those of a step, under accumulate=exact."""
    exact = OmegaConf.select(config, "accumulate", default="plain") == "exact"
    return int(config.trainer.accumulate_grad_batches) if exact else 1


def set_execution(config: DictConfig, module: SelfDistillModule[Any, Any]) -> None:
    """How the steps of ``module`` are computed; none of it changes what they compute.

    Raises:
        ValueError: a backbone that cannot.
    """
    if micro_batches(config) > 1:
        module.micro_batch_size = config.data.batch_size
    if config.trainer.activation_checkpointing:
        module.student.backbone.checkpoint_activations()
    for tower in (module.student, module.teacher):
        if tower is not None and config.channels_last:
            tower.to(memory_format=torch.channels_last)
        if tower is not None and config.compile:
            # in place: keys keep their names
            tower.compile()


def read_masks(module: SelfDistillModule[Any, Any], recipe: ViewRecipe) -> None:
    """Refuse a recipe without the masks that the method or an objective reads."""
    check_read_masks(module, recipe.draw_masks(torch.zeros(1, dtype=torch.int64), seed=0, epoch=0))


def try_backbone(module: SelfDistillModule[Any, Any], datamodule: DataModule) -> None:
    """The views have the masks that are read, and one image of the smallest crop passes the backbone."""
    read_masks(module, datamodule.recipe)
    size = min(crop.size for crop in datamodule.recipe.crops)
    try:
        with evaluating(module), torch.no_grad():
            module.student.backbone(torch.zeros(1, datamodule.image_channels, size, size))
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"backbone: it does not take crops of {size}×{size} pixels ({str(error).splitlines()[0]}); "
            "choose another backbone or larger views"
        ) from error


def build_teacher(config: DictConfig) -> TeacherPolicy:
    """The policy of ``config.teacher``; ``teacher.checkpoint`` is the network of another run."""
    settings = {key: value for key, value in config.teacher.items() if key not in ("checkpoint", "trust")}
    path = config.teacher.get("checkpoint")
    if path is None:
        return made("teacher", settings)
    stored = read_checkpoint("teacher.checkpoint", path)
    foreign = foreign_target(stored["selfdistill"]["config"])
    if foreign and not config.teacher.get("trust"):
        raise UserError(
            f"teacher.checkpoint: {path} names {foreign}, which is not of this package and would be run; "
            "teacher.trust=true allows it, where you know who wrote the file"
        )
    other = build_method(OmegaConf.create(stored["selfdistill"]["config"]))
    other.load_state_dict(stored["state_dict"])
    return made("teacher", settings, _partial_=True)(network=other.evaluated_tower)


def check_limit(config: DictConfig, datamodule: DataModule) -> None:
    """Refuse a share of an epoch that is less than one batch."""
    limit = config.trainer.limit_train_batches
    batches = datamodule.num_train // datamodule.batch_size + (not datamodule.drop_last)
    if isinstance(limit, float) and int(limit * batches) < 1:
        raise UserError(
            f"trainer.limit_train_batches: {limit} given, less than one of {batches} batches; allowed is a share of at "
            f"least {1 / batches:.2g}, or a whole number of batches"
        )


def build_callbacks(config: DictConfig, folder: Path) -> list[L.Callback]:
    """The callbacks of the group, what shows progress, and last the teacher's update."""
    # with callbacks=[] what a small data set sets of them is left without its object
    given = [(f"callbacks.{name}", node) for name, node in config.callbacks.items() if node and "_target_" in node]
    shown = ProgressBar() if config.trainer.enable_progress_bar and sys.stdout.isatty() else EpochLines()
    stop = GracefulInterrupt(folder / "checkpoints" / LAST)
    chosen = [made(key, node) for key, node in given]
    return [*chosen, shown, CostMeter(), TemperatureLog(), RefreshReport(folder), TeacherUpdate(), History(), stop]


def build_trainer(config: DictConfig, callbacks: list[L.Callback]) -> L.Trainer:
    """The Trainer of ``config.trainer``; what Lightning refuses is said in one line."""
    check_devices(OmegaConf.to_container(config.trainer, resolve=True))  # type: ignore[arg-type]
    if config.trainer.get("sync_batchnorm") and not whole_statistics(config.trainer):
        config.trainer.sync_batchnorm = False
        if is_first():
            line = "trainer.sync_batchnorm: on a CPU each process has batch-norm statistics of its own"
            print(f"warning: {line}", file=sys.stderr)
    try:
        bar = config.trainer.enable_progress_bar and any(isinstance(c, ProgressBar) for c in callbacks)
        settings = {key: value for key, value in config.trainer.items() if key != "activation_checkpointing"}
        settings["accumulate_grad_batches"] //= micro_batches(config)
        plugins = instantiate(settings.pop("plugins", None) or [])
        plugins = list(plugins) if isinstance(plugins, Sequence) else [plugins]
        if settings.get("sync_batchnorm"):
            plugins.append(BatchNormSync())
        trainer: L.Trainer = instantiate(
            settings, callbacks=callbacks, plugins=plugins, logger=False, enable_progress_bar=bar
        )
    except InstantiationException as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(f"trainer: {reason}") from error
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer
