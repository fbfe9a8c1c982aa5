"""A network from a file alone: a run's checkpoint, which says how it is built, or a published one and its backbone."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from selfdistill import __version__
from selfdistill.assembly import build_method
from selfdistill.checkpoint import foreign_target, newest_readable, read_checkpoint
from selfdistill.checkpoint_io import LAST, PREVIOUS
from selfdistill.config import UserError
from selfdistill.evaluation.published import Published
from selfdistill.methods import SelfDistillModule
from selfdistill.networks import load_published

Network = Literal["student", "teacher"]


@dataclass(frozen=True)
class Restored:
    """A module with the weights of a checkpoint, and where they come from.

    Attributes:
        module: in eval mode, on the CPU.
        config: of the run, resolved.
        checkpoint: the file.
        step: optimizer steps taken.
        version: of this package, that wrote the file; None where it does not say.
        layout: of a published file; None for a run of ours.
    """

    module: SelfDistillModule[Any, Any]
    config: DictConfig
    checkpoint: Path
    step: int
    version: str | None
    layout: str | None = None

    @property
    def method(self) -> str:
        """The class of a run of ours, the layout of a published file."""
        return type(self.module).__name__ if self.layout is None else self.layout

    @property
    def network(self) -> str:
        """Which network is evaluated: student, teacher, or the one that was published."""
        return self.module.evaluates if self.layout is None else "published"

    @property
    def folder(self) -> Path:
        """The run's folder, or the one that holds a checkpoint that was copied out of its run."""
        parent = self.checkpoint.parent
        return parent.parent if parent.name == "checkpoints" else parent

    @property
    def sha256(self) -> str:
        with open(self.checkpoint, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def restore(path: str, network: Network | None = None, *, trust: bool = False, key: str = "checkpoint") -> Restored:
    """Rebuild the module of a checkpoint and load it; no code in the file is run.

    Args:
        path: a checkpoint, or a run's folder, of which the newest that can be read is taken.
        network: the one to evaluate; None as the method says.
        trust: the configuration in the file may name classes and functions of other packages, which are then called.
        key: the setting that errors name.

    Raises:
        UserError: no such file, not ours, or of a configuration or version that does not fit; nothing is guessed.
    """
    file, stored, warning = newest_readable(
        checkpoint_files(path, key), lambda each: read_checkpoint(key, str(each)), "taking"
    )
    if warning is not None:
        print(warning, file=sys.stderr)
    about, state = stored["selfdistill"], stored["state_dict"]
    version = about.get("version")
    config = OmegaConf.create(about["config"])
    foreign = foreign_target(about["config"])
    if foreign and not trust:
        raise UserError(
            f"{key}: {file.name} names {foreign}, which is not of this package and would be run; "
            "trust=true allows it, where you know who wrote the file"
        )
    if "backbone" in config:
        for source in ("pretrained", "checkpoint"):
            if config.backbone.get(source):
                config.backbone[source] = None  # the weights are in the file
    try:
        module = build_method(config)
    except (UserError, InstantiationException, ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(
            f"{key}: {file.name} holds a {about.get('method')} that cannot be built ({reason}); {_versions(version)}"
        ) from error
    if type(module).__name__ != about.get("method"):
        raise UserError(
            f"{key}: {file.name} says {about.get('method')}, its configuration builds {type(module).__name__}; "
            "the file was changed"
        )
    mine = module.state_dict()
    differing = [
        name
        for name in {**mine, **state}
        if getattr(mine.get(name), "shape", None) != getattr(state.get(name), "shape", None)
        or (name in mine) != (name in state)
    ]
    if differing:
        first = differing[0]
        how = "is missing in it" if first not in state else "is not known" if first not in mine else "has another shape"
        raise UserError(
            f"{key}: {file.name} does not fit {type(module).__name__}: {first!r} {how} "
            f"({len(differing)} of {len(mine)} entries differ); {_versions(version)}"
        )
    module.load_state_dict(state)
    module.eval()
    if network is not None:
        _choose(module, network)
    return Restored(module, config, file, int(stored.get("global_step", 0)), version)


def restore_published(path: str, backbone: DictConfig, *, key: str = "checkpoint") -> Restored:
    """The backbone of a file that others published, or a ``backbone.safetensors`` of ours; no code in it is run.

    Args:
        path: the file, in one of the layouts of :func:`load_published`.
        backbone: builds the network that it was made with.
        key: the setting that errors name.

    Raises:
        UserError: no such file, of no known layout, or of another network.
    """
    if Path(path).is_dir():
        raise UserError(f"{key}: {path!r} given, a folder; with backbone={backbone.name} allowed is a published file")
    network = instantiate(backbone, checkpoint=None)
    try:
        layout = load_published(path, network)
    except ValueError as error:
        raise UserError(f"{key}{str(error).removeprefix('backbone.checkpoint')}") from error
    return Restored(Published(network).eval(), OmegaConf.create(), Path(path), 0, None, layout)


def checkpoint_files(path: str, key: str = "checkpoint") -> list[Path]:
    """``path`` if it is a file, the newest checkpoint and the one before it if it is a run's folder.

    Raises:
        UserError: neither.
    """
    given = Path(path)
    if given.is_dir():
        files = [given / "checkpoints" / name for name in (LAST, PREVIOUS)]
        if any(file.is_file() for file in files):
            return files
        raise UserError(f"{key}: {path!r} given, a folder without checkpoints/last.ckpt; allowed is a run or a .ckpt")
    if not given.is_file():
        raise UserError(
            f"{key}: {path!r} given, no such file; allowed is a run's folder or <run>/checkpoints/last.ckpt"
        )
    return [given]


def _choose(module: SelfDistillModule[Any, Any], network: str) -> None:
    if network not in ("student", "teacher"):
        raise UserError(f"network: {network!r} given, allowed is student, teacher or null (as the method says)")
    if network == "teacher" and module.teacher is None:
        raise UserError(f"network: teacher given, this {type(module).__name__} has none; allowed is student")
    module.evaluates = network  # type: ignore[misc,assignment]


def _versions(theirs: str | None) -> str:
    wrote = "an unnamed version" if theirs is None else theirs
    return f"written by selfdistill {wrote}, this is {__version__}"
