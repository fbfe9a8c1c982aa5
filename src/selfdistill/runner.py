"""One run: assemble, fit, evaluate, leave the files."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from selfdistill import __version__
from selfdistill.assembly import (
    build_callbacks,
    build_data,
    build_method,
    build_trainer,
    check_limit,
    set_execution,
    try_backbone,
)
from selfdistill.callbacks import (
    CollapseError,
    CollapseMonitor,
    CostMeter,
    OnlineKNN,
    OnlineProbe,
    TeacherUpdate,
    TrainingInterrupted,
)
from selfdistill.checkpoint_io import LAST, AtomicCheckpointIO
from selfdistill.config import CONF, UserError, check_values, resolved
from selfdistill.costs.table import as_plain, measured_line
from selfdistill.estimate import answer, predicted
from selfdistill.evaluation.figures import Figures, backbone_figures, figures_table, pixel_figures
from selfdistill.export import export_backbone, run_facts
from selfdistill.files import write_text
from selfdistill.methods.finite import NonFiniteLossError
from selfdistill.provenance import provenance
from selfdistill.repeat import relocatable
from selfdistill.report.ending import last_report
from selfdistill.resume import AUTO, carry_over, check_fits, find
from selfdistill.sharding import consolidated

log = logging.getLogger(__name__)


def fit(config: DictConfig) -> float | None:
    """Train what ``config`` describes and leave the run's folder.

    Returns:
        The sweep objective: k-NN accuracy on the validation split; None without labels.

    Raises:
        UserError: what was asked for cannot work; nothing is left behind.
    """
    folder = Path(config.run_dir or HydraConfig.get().runtime.output_dir)
    quiet()
    if config.ckpt_path == AUTO and (folder / "summary.json").is_file():
        print(f"run: {folder} is finished; ckpt_path={folder} continues it in another folder")
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["validation_knn"]
    try:
        with clear_errors():
            if config.get("cost_only"):
                _tell_cost(config, folder)
                return None
            return _fit(config, folder)
    except UserError:
        _remove_if_empty(folder)
        raise
    except KeyboardInterrupt:
        last = folder / "checkpoints" / "last.ckpt"
        if last.exists():
            print(
                f"\nstopped after training; the same command with ckpt_path={last} gives the figures", file=sys.stderr
            )
            sys.exit(130)
        _remove_if_empty(folder)
        raise
    except TrainingInterrupted as stop:
        again = "" if config.ckpt_path == AUTO else f" with ckpt_path={stop.checkpoint}"
        then = "nothing to continue" if stop.checkpoint is None else f"the same command{again} continues it"
        print(f"\n{stop}: {then}", file=sys.stderr)
        sys.exit(128 + stop.signal_number)


def _fit(config: DictConfig, folder: Path) -> float | None:
    config = config.copy()
    config.run_dir = str(folder)
    plain = resolved(config)
    check_values(plain)
    OmegaConf.resolve(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build_data(config)
    check_limit(config, datamodule)
    module = build_method(config)
    module.provenance = {"config": plain, "version": __version__}
    try_backbone(module, datamodule)
    set_execution(config, module)
    continued = None if config.ckpt_path is None else find(config.ckpt_path, folder)
    if continued is not None:
        check_fits(continued, module)
    callbacks = build_callbacks(config, folder)
    if not datamodule.labelled or not any(isinstance(c, OnlineKNN) for c in callbacks):
        # nothing tells which checkpoint is best
        callbacks = [c for c in callbacks if not (isinstance(c, ModelCheckpoint) and c.monitor)]
    trainer = build_trainer(config, callbacks)
    if trainer.is_global_zero:
        _claim(folder, config)
        if config.ckpt_path is not None:
            carry_over(continued, folder)
    trainer.loggers = [instantiate(value) for value in config.logger.values() if OmegaConf.is_dict(value)]

    baselines: dict[str, Figures] = {}
    if datamodule.labelled:
        settings = plain["evaluation"]
        baselines = {
            "raw_pixels": pixel_figures(datamodule, **settings),
            "initial": backbone_figures(module, datamodule, **settings),
        }
    else:
        trainer.limit_val_batches = 0
        print("k-NN and final figures are off: the data has no labels")
    cost = None
    if trainer.is_global_zero:
        print(f"views: made {datamodule.engine_choice}")
        cost = predicted(config)
    started = time.perf_counter()
    try:
        checkpoint = None if continued is None else str(continued.path)
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    finally:
        if trainer.is_global_zero:
            tell_unreadable(datamodule.unreadable, folder / "unreadable.txt")
    seconds = time.perf_counter() - started

    written = trainer.strategy.checkpoint_io
    unsaved = written.failed.get(folder / "checkpoints" / LAST) if isinstance(written, AtomicCheckpointIO) else None
    figures: dict[str, Figures] = {}
    if datamodule.labelled:
        module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        figures = {"trained": backbone_figures(module, datamodule, **plain["evaluation"]), **baselines}
    # a run that was at its end already has not taken a step here
    steps = next(c.clock.step for c in callbacks if isinstance(c, TeacherUpdate))
    monitor = next((c for c in callbacks if isinstance(c, CollapseMonitor)), None)
    online = next((c for c in callbacks if isinstance(c, OnlineKNN)), None)
    probe = next((c for c in callbacks if isinstance(c, OnlineProbe)), None)
    meter = next(c for c in callbacks if isinstance(c, CostMeter))
    summary = {
        "method": _method_name(plain["method"]["_target_"]),
        "figures": figures,
        "split": "test",
        "validation_knn": None if online is None else online.accuracy,
        "validation_probe": None if probe is None else probe.accuracy,
        "collapse": None if monitor is None else monitor.kind,
        "alarms": [] if monitor is None else [asdict(alarm) for alarm in monitor.alarms],
        "mends": [] if monitor is None else monitor.mends,
        "seconds": {"train": round(seconds, 3), "data_wait": round(datamodule.seconds_waited, 3)},
        "cost": {"predicted": None if cost is None else as_plain(cost), "measured": meter.measured},
        "optimizer_steps": steps,
        "continued": None if continued is None else {"from": str(continued.path), "step": continued.step},
        "unreadable_images": len(datamodule.unreadable),
        "evaluates": module.evaluates,
        "seed": config.seed,
    }
    if unsaved is not None:
        if figures:
            print(figures_table(figures))
        raise UserError(
            f"hydra.run.dir: {folder} cannot be written ({unsaved}): the training ended, its last state is lost; "
            f"make room and continue with ckpt_path={folder}"
        )
    module = consolidated(module, lambda: build_method(config))
    if trainer.is_global_zero:
        facts = run_facts(datamodule.source, plain, figures=figures, step=steps)
        export_backbone(module, folder / "backbone.safetensors", facts)
        write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        if figures:
            source = type(datamodule.source).__name__
            print(f"\n{source}, test split, {module.evaluates} network\n\n{figures_table(figures)}\n")
        if cost is not None and (line := measured_line(cost, meter.measured)):
            print(line)
        spent = f"{seconds:.0f} s, {datamodule.seconds_waited / seconds:.1%} of it waiting for data"
        print(f"collapse: {summary['collapse'] or 'none seen'}    training: {spent}    run: {folder}")
        print(f"report: {last_report(module, datamodule, folder, trainer.loggers)}")
    return summary["validation_knn"]


def _tell_cost(config: DictConfig, folder: Path) -> None:
    plain = resolved(config)
    check_values(plain)
    OmegaConf.resolve(config)
    try:
        print(answer(config))
    finally:
        _remove_if_empty(folder)


def tell_unreadable(names: list[str], file: Path) -> None:
    """A line, and the names in ``file``, where images were skipped."""
    if names:
        write_text(file, "\n".join(names) + "\n")
        print(f"{len(names):,} images cannot be read and were skipped, named in {file}; the first: {names[0]}")


@contextmanager
def clear_errors() -> Iterator[None]:
    """A mistake that this package found becomes one line; an error from elsewhere keeps its traceback."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError | ImportError):
            raise UserError(_with_group(str(error.__cause__), str(error))) from error.__cause__
        raise
    except (NonFiniteLossError, CollapseError) as error:
        raise UserError(str(error)) from error
    except MisconfigurationException as error:  # Lightning's word for a setting that cannot work
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if (said := _said_in_worker(str(error))) is not None:
            raise UserError(said) from error
        if _raised_here(error):
            raise UserError(str(error)) from error
        raise


def quiet() -> None:
    """Keep what other libraries say beside the point out of the terminal."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    # the teacher stands in eval mode on purpose
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode at the start of training")
    # the folder is this run's own: Hydra made it, with the log in it, or an earlier part of the run
    warnings.filterwarnings("ignore", message=".* directory .* exists and is not empty")
    # nobody writes into what a backbone returns
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _with_group(message: str, report: str) -> str:
    """An argument's name becomes the setting's: what Hydra made with it stands in its report."""
    found = re.search(r"^full_key: (\S+)$", report, re.MULTILINE)
    name = re.match(r"(?:[A-Z]\w*\.)?([a-z]\w*)(?=[:=]| must )", message)
    if found is None or name is None or name[1] == found[1].split(".")[0]:
        return message
    return f"{found[1]}.{name[1]}{message[name.end() :]}"


def _raised_here(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = Path(__file__).parent
    return frame is not None and package in Path(frame.tb_frame.f_code.co_filename).parents


def _said_in_worker(message: str) -> str | None:
    """The line of an error of this package that came from a loader's worker, wrapped into its traceback there."""
    lines = message.strip().splitlines()
    places = [line for line in lines if line.lstrip().startswith('File "')]
    if not message.startswith("Caught ") or not places or str(Path(__file__).parent) not in places[-1]:
        return None
    return lines[-1].partition(": ")[2]


def _claim(folder: Path, config: DictConfig) -> None:
    """Write the resolved configuration and where it comes from; a folder that holds a run already is refused.

    Only ``ckpt_path=auto`` goes on in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.ckpt_path != AUTO:
            open(folder / "config.yaml", "x").close()
        stored = relocatable(resolved(config), str(folder))
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(stored)))
        write_text(folder / "provenance.json", json.dumps(provenance(), indent=2) + "\n")
    except FileExistsError:
        raise UserError(f"hydra.run.dir: {folder} holds a run already; choose another folder") from None
    except OSError as error:
        raise UserError(f"hydra.run.dir: {folder} cannot be written ({error.strerror}); choose another") from None


def _method_name(target: str) -> str | None:
    """The choice of ``method``, or, in a run that is repeated from its folder, the file that names this class."""
    if not HydraConfig.initialized():
        return None
    chosen: str | None = HydraConfig.get().runtime.choices.get("method")
    files = sorted((CONF / "method").glob("*.yaml"))
    named = (file.stem for file in files if f"_target_: {target}\n" in file.read_text(encoding="utf-8"))
    return chosen or next(named, target.rpartition(".")[2])


def _remove_if_empty(folder: Path) -> None:
    """Nothing but what ``_claim`` wrote in it: nothing was trained, so another try may have the folder."""
    try:
        if {path.name for path in folder.iterdir()} <= {"config.yaml", "provenance.json"}:
            (folder / "config.yaml").unlink(missing_ok=True)
            (folder / "provenance.json").unlink(missing_ok=True)
        folder.rmdir()
        folder.parent.rmdir()
    except OSError:
        return
