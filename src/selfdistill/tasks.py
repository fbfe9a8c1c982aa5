"""What is done with a finished run: evaluate it, export it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors import safe_open

from selfdistill.allocator import keep_freed_memory
from selfdistill.assembly import check_classes
from selfdistill.config import UserError, resolved
from selfdistill.config.named import made, named
from selfdistill.config.overrides import given_keys
from selfdistill.data import DataModule, Source, Split
from selfdistill.data.images import IMAGENET_MEAN, IMAGENET_STD, Images
from selfdistill.distributed import rank
from selfdistill.evaluation.protocols import Figure, Subject, table
from selfdistill.export import FORMATS, Facts, export_backbone, run_facts, source_name
from selfdistill.failures import clear_errors, quiet
from selfdistill.files import whole_file, write_text
from selfdistill.restore import Restored, restore, restore_published
from selfdistill.run_folder import tell_unreadable
from selfdistill.unused import check_shots
from selfdistill.views import Augment, CropSpec, ViewRecipe


def evaluate(config: DictConfig) -> float | None:
    """Measure a checkpoint by ``config.protocol``; print a table, write JSON and CSV.

    Started by ``torchrun``, the processes share the images out; the figures are the same.

    Returns:
        The last figure of the first protocol, which a sweep may compare.

    Raises:
        UserError: what was asked for cannot work; nothing is written.
    """
    quiet()
    keep_freed_memory()
    with clear_errors(), processes():
        plain = resolved(config)
        keys = {f"protocol.{name}": node for name, node in config.protocol.items()}
        protocols = {key: made(key, node) for key, node in keys.items()}
        if not protocols:
            raise UserError("protocol: none given, allowed is knn, linear, few_shot, finetune, geometry, all")
        run = evaluated(config, plain)
        name, data = evaluation_data(run, config)
        check_shots(given_keys(), "protocol.few_shot.shots", config, data)
        run.module.to(device())
        subject = Subject(run.module, data)
        if rank() > 0:
            return None
        figures: list[Figure] = []
        for key, protocol in protocols.items():
            with named(key, keys[key]):
                figures += protocol(subject)
        first = [figure.value for figure in figures if figure.protocol == figures[0].protocol]
        about = {
            "method": run.method,
            "network": run.network,
            "checkpoint": run.checkpoint.name,
            "sha256": run.sha256,
            "step": run.step,
            "data": name,
            "split": "test",
            "images": {"train": len(subject.train[0]), "test": len(subject.test[0])},
            "classes_absent_from_train": subject.absent,
            "protocols": plain["protocol"],
        }
        stem = f"{run.checkpoint.stem}-{run.network}-{name}-{'+'.join(plain['protocol'])}"
        written = Path(plain["output"]) if plain["output"] else run.folder / "evaluation" / f"{stem}.json"
        write_figures(written, about, figures)
        print(f"{about['method']}, {about['network']} network, {name}, test split\n\n{table(figures)}\n")
        if subject.absent:
            print(f"classes that no training image has, their test images count as wrong: {subject.absent}")
        tell_unreadable(data.unreadable, written.with_suffix(".unreadable.txt"))
        print(f"written: {written} and .csv")
        return first[-1]


def evaluated(config: DictConfig, plain: dict[str, Any]) -> Restored:
    """The network of ``config.checkpoint``: of a run, or, where ``config.backbone`` is given, of a published file.

    Raises:
        UserError: what :func:`restore` and :func:`restore_published` refuse, or settings that say nothing there.
    """
    if "backbone" not in config:
        try:
            return restore(plain["checkpoint"], plain["network"], trust=plain["trust"])
        except UserError as error:
            hint = "not a " in str(error) and "; a file of others needs backbone=<its network> and data=<…>"
            raise UserError(f"{error}{hint or ''}") from error
    if "data" not in config:
        raise UserError("data: none given, which a published file does not say; set data=…")
    if plain["network"] is not None:
        raise UserError(f"network: {plain['network']} given, a published file has one network; leave it out")
    return restore_published(plain["checkpoint"], config.backbone)


def evaluation_data(run: Restored, config: DictConfig) -> tuple[str, DataModule]:
    """Name and data module of what the network is evaluated on: ``config.data``, or the run's own.

    Images of another data set are normalised as those that the network was trained on; for a published network of
    colour images with ImageNet's mean and deviation, or those that a ``backbone.safetensors`` of ours tells.

    Raises:
        UserError: images that the network does not take, or no labels, or more classes than ``data.image.classes``.
    """
    own = "data" not in config
    settings = run.config.data if own else config.data
    source: Source = made("data.source", settings.source)
    if run.layout is not None:
        source = NormalisedAs(source, *normalisation(run.checkpoint, source))
    elif not own:
        trained: Source = instantiate(run.config.data.source)
        if trained.channels != source.channels:
            raise UserError(
                f"data: its images have {source.channels} channels, the network takes {trained.channels}; "
                "choose other data"
            )
        source = NormalisedAs(source, trained.mean, trained.std)
    data = DataModule(
        source,
        ViewRecipe([CropSpec(source.size, Augment())]),  # nothing is trained
        batch_size=1,
        num_workers=settings.num_workers,
        on_error=settings.get("on_error", "raise"),
        eval_batch_size=settings.eval_batch_size,
    )
    if not data.labelled:
        raise UserError("data: it has no labels, which evaluation needs; choose a data set with labels")
    check_classes(data, settings.get("image", {}).get("classes"), ("train", "test"))
    return _data_name(data, own), data


def normalisation(file: Path, source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the network of a published ``file`` was trained with."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
        if "mean" in told and "std" in told:
            return tuple(json.loads(told["mean"])), tuple(json.loads(told["std"]))
    return (IMAGENET_MEAN, IMAGENET_STD) if source.channels == 3 else (source.mean, source.std)


@dataclass(frozen=True)
class NormalisedAs:
    """A source whose images are normalised by another one's mean and deviation."""

    source: Source
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def size(self) -> int:
        return self.source.size

    def split(self, name: Split) -> Images:
        return self.source.split(name)


def _data_name(data: DataModule, own: bool) -> str:
    if not own and HydraConfig.initialized() and (choice := HydraConfig.get().runtime.choices.get("data")):
        return str(choice)
    return source_name(data.source.source if isinstance(data.source, NormalisedAs) else data.source)


def write_figures(path: Path, about: dict[str, Any], figures: list[Figure]) -> None:
    """``path`` as JSON, and the figures alone as CSV beside it."""
    rows = [asdict(figure) for figure in figures]
    write_text(path.with_suffix(".json"), json.dumps({**about, "figures": rows}, indent=2, ensure_ascii=False) + "\n")
    with (
        whole_file(path.with_suffix(".csv")) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, ["protocol", "setting", "value", "ci95"])
        writer.writeheader()
        writer.writerows(rows)


def export(config: DictConfig) -> None:
    """Write the backbone of a checkpoint in ``config.format``, with its card.

    Raises:
        UserError: what was asked for cannot work; nothing is left behind.
    """
    quiet()
    with clear_errors():
        plain = resolved(config)
        format, head = plain["format"], plain["head"]
        if format not in FORMATS:
            raise UserError(f"format: {format!r} given, allowed is {', '.join(FORMATS)}")
        run = restore(plain["checkpoint"], plain["network"], trust=plain["trust"])
        default = run.folder / "export" / f"{format}{'-head' * head}" / f"backbone{FORMATS[format]}"
        output = Path(plain["output"] or default)
        written = export_backbone(run.module, output, facts_of(run), format=format, head=head)
        print(f"written: {written}, its card beside it")


def facts_of(run: Restored) -> Facts:
    """What a card says of a restored run."""
    source: Source = instantiate(run.config.data.source)
    summary = run.folder / "summary.json"
    # the figures of a run are those of its last checkpoint
    known = summary.is_file() and run.checkpoint.stem == "last"
    return run_facts(
        source,
        resolved(run.config),
        figures=json.loads(summary.read_text(encoding="utf-8")).get("figures", {}) if known else {},
        step=run.step,
        checkpoint=run.checkpoint.name,
        sha256=run.sha256,
    )


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that ``torchrun`` started; nothing where there is one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def device() -> torch.device:
    """The accelerator of this process where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
