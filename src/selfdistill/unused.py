"""What a command gives and none of the parts that were built reads: known before the first batch, and refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from selfdistill.callbacks import OnlineKNN, OnlineProbe
from selfdistill.config import UserError
from selfdistill.config.errors import nearest, shown
from selfdistill.data import DataModule
from selfdistill.methods import SelfDistillModule

# (keys, what they are for, why nothing reads them without it)
_FOR: tuple[tuple[str, str, str], ...] = (
    (r"data\.labelled", "labels", "nothing learns from labels: choose objective=supervised or callbacks=probe"),
    (r"views\.masks(\..+)?", "masks", "neither the method nor an objective reads masks"),
    (r"backbone\.image_size", "image_size", "of these backbones only vision transformers are made for one size"),
    (r"(backbone\.patch_size|data\.image\.patch)", "patch_size", "this backbone has no patches"),
    (r"(backbone|data\.image)\.small_stem", "small_stem", "this backbone is no ResNet"),
    (r"backbone\.drop_path", "drop_path", "this backbone has no stochastic depth"),
    (r"backbone\.pretrained", "pretrained", "there are no published weights of this backbone"),
)

_FIGURES = (*OnlineKNN.logs, *OnlineProbe.logs)


def check_used(
    given: Sequence[str], config: DictConfig, module: SelfDistillModule[Any, Any], callbacks: Sequence[L.Callback]
) -> None:
    """Refuse keys of the command that nothing reads.

    Args:
        given: these keys.
        config: that was built.
        module: and
        callbacks: made of it.

    Raises:
        UserError: naming the key and why it is not read.
    """
    needs = {need for objective in module.objectives.values() for need in getattr(objective, "needs", ())}
    if module.accepts.masks:
        needs.add("masks")
    if not all(_ours(objective) for objective in module.objectives.values()):
        needs |= {"labels", "masks"}
    if any(isinstance(c, OnlineProbe) or not _silent(c) for c in callbacks) or not _ours(module):
        needs.add("labels")
    unread = ({"labels", "masks"} - needs) | module.student.backbone.ignores
    for key in given:
        for pattern, purpose, why in _FOR:
            value = OmegaConf.select(config, key)
            if purpose in unread and re.fullmatch(pattern, key) and value is not None:
                value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                raise UserError(f"{key}: {shown(value)} given, but {why}; leave it out")


def check_shots(given: Sequence[str], key: str, config: DictConfig, data: DataModule) -> None:
    """Refuse shots of the command that a class has too few training images for, and that would be left out.

    Raises:
        UserError: naming the key, the class and what it has.
    """
    loader: Any = data.evaluation_loader("train")
    labels = loader.dataset.images.labels
    classes, counts = labels[labels >= 0].unique(return_counts=True)
    fewest = int(counts.min())
    beyond = [shots for shots in OmegaConf.select(config, key, default=()) if shots > fewest]
    if key in given and beyond:
        raise UserError(
            f"{key}: {beyond[0]} given, but class {int(classes[counts.argmin()])} has {fewest} training images; "
            f"give at most {fewest}"
        )


def with_known_monitors(
    given: Sequence[str],
    config: DictConfig,
    module: SelfDistillModule[Any, Any],
    callbacks: Sequence[L.Callback],
    *,
    labelled: bool,
) -> list[L.Callback]:
    """``callbacks`` without checkpoints by a figure that nothing logs here, such as k-NN without labels.

    Raises:
        UserError: another figure that nothing logs, or one that the command names.
    """
    names = ["train/*", "optimizer/lr", *(name for c in callbacks for name in getattr(c, "logs", ()))]
    names = [name for name in names if labelled or not name.startswith("val/")]
    kept = []
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and not any(fnmatch(monitor, name) for name in names):
            stating = (n for n, node in config.callbacks.items() if node and node.get("monitor") == monitor)
            key = f"callbacks.{next(stating, '<name>')}.monitor"
            if isinstance(callback, ModelCheckpoint) and monitor in _FIGURES and key not in given:
                continue
            if _ours(module) and all(_silent(c) for c in callbacks):
                near = nearest(monitor, names)
                raise UserError(f"{key}: {monitor!r} given, allowed is what is logged: {', '.join(names)}{near}")
        kept.append(callback)
    return kept


def _ours(part: object) -> bool:
    return type(part).__module__.startswith("selfdistill.")


def _silent(callback: L.Callback) -> bool:
    """Whether it is known what the callback reads and logs: not of one that others wrote."""
    return _ours(callback) or isinstance(callback, ModelCheckpoint | EarlyStopping)
