"""One run: assemble, fit, evaluate, leave the files."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from selfdistill import __version__
from selfdistill.allocator import keep_freed_memory
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
    CollapseMonitor,
    CostMeter,
    MedianStop,
    OnlineKNN,
    OnlineProbe,
    TeacherUpdate,
    TrainingInterrupted,
)
from selfdistill.checkpoint_io import LAST, PREVIOUS, AtomicCheckpointIO
from selfdistill.config import UserError, check_values, resolved
from selfdistill.config.named import made, named
from selfdistill.config.overrides import given_keys
from selfdistill.costs.table import as_plain, measured_line
from selfdistill.data import DataModule
from selfdistill.estimate import answer, predicted
from selfdistill.evaluation.figures import Figures, backbone_figures, figures_table, pixel_figures
from selfdistill.export import export_backbone, run_facts
from selfdistill.failures import clear_errors, quiet
from selfdistill.files import whole_file, write_text
from selfdistill.methods import SelfDistillModule
from selfdistill.processes import is_first
from selfdistill.report.ending import last_report, report_of_a_stop
from selfdistill.resume import AUTO, carry_over, check_fits, find, longer
from selfdistill.run_folder import (
    claim,
    continued_by,
    method_name,
    release,
    remove_if_empty,
    tell_unreadable,
)
from selfdistill.sharding import consolidated
from selfdistill.text_table import duration
from selfdistill.unused import check_shots, check_used, with_known_monitors

C = TypeVar("C", bound=L.Callback)


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
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if is_first():
            more = longer(config.trainer, folder, summary["optimizer_steps"])
            print(f"run: {folder} is finished; to train longer, in another folder: {more}")
        return summary["validation_knn"]
    try:
        with clear_errors():
            if config.get("cost_only"):
                _tell_cost(config, folder)
                return None
            return _fit(config, folder)
    except UserError:
        remove_if_empty(folder)
        raise
    except KeyboardInterrupt:
        if (folder / "checkpoints" / LAST).exists():
            if is_first():
                again = continued_by(config, folder)
                print(f"\nstopped outside the training; the same command{again} goes on", file=sys.stderr)
            sys.exit(130)
        remove_if_empty(folder)
        raise
    except TrainingInterrupted as stop:
        again = "" if stop.checkpoint is None else continued_by(config, stop.checkpoint)
        then = "nothing to continue" if stop.checkpoint is None else f"the same command{again} continues it"
        if is_first():
            print(f"\n{stop}: {then}", file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    finally:
        release(folder)


def _fit(config: DictConfig, folder: Path) -> float | None:
    config = config.copy()
    config.run_dir = str(folder)
    plain = resolved(config)
    check_values(plain)
    OmegaConf.resolve(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    keep_freed_memory()
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
    given = given_keys()
    check_used(given, config, module, callbacks)
    callbacks = with_known_monitors(given, config, module, callbacks, labelled=datamodule.labelled)
    if datamodule.labelled:
        check_shots(given, "evaluation.shots", config, datamodule)
    trainer = build_trainer(config, callbacks)
    if trainer.is_global_zero:
        claim(folder, config)
        if config.ckpt_path is not None:
            carry_over(continued, folder)
        if continued is not None:
            print(f"continuing: {continued.path}, step {continued.step}")
    trainer.loggers = [made(f"logger.{n}", node) for n, node in config.logger.items() if OmegaConf.is_dict(node)]

    baselines: dict[str, Figures] = {}
    if datamodule.labelled:
        settings = plain["evaluation"]
        with named("evaluation", settings):
            baselines = {"raw_pixels": pixel_figures(datamodule, **settings)}
        module.to(trainer.strategy.root_device)
        baselines["initial"] = backbone_figures(module, datamodule, **settings)
        module.cpu()  # where Lightning expects it: what is sharded may not fit whole beside the shards
    else:
        trainer.limit_val_batches = 0
        if trainer.is_global_zero:
            print("k-NN and final figures are off: the data has no labels")
    cost = None
    if trainer.is_global_zero:
        print(f"views: made {datamodule.engine_choice}")
        cost = predicted(config)
    started = time.perf_counter()
    try:
        checkpoint = None if continued is None else str(continued.path)
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except BaseException as error:
        if trainer.is_global_zero:
            report_of_a_stop(trainer, folder, error)
        raise
    finally:
        if trainer.is_global_zero:
            tell_unreadable(datamodule.unreadable, folder / "unreadable.txt")
    seconds = time.perf_counter() - started
    if trainer.is_global_zero and continued is not None and trainer.global_step == continued.step:
        print(f"nothing was left to train; to train longer: {longer(config.trainer, continued.path, continued.step)}")

    last = folder / "checkpoints" / LAST
    if trainer.is_global_zero and continued is not None and not last.exists() and trainer.global_step == continued.step:
        # what it continues had ended: this run is as whole a run as that one
        with whole_file(last) as part:
            shutil.copyfile(continued.path, part)
    written = trainer.strategy.checkpoint_io
    unsaved = written.failed.get(last) if isinstance(written, AtomicCheckpointIO) else None
    # known to the process that writes; the others must not wait for it
    unsaved = trainer.strategy.broadcast(unsaved)
    figures: dict[str, Figures] = {}
    if datamodule.labelled:
        module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        figures = {"trained": backbone_figures(module, datamodule, **plain["evaluation"]), **baselines}
    summary = summarised(module, datamodule, callbacks) | {
        "method": method_name(plain["method"]["_target_"]),
        "figures": figures,
        "split": "test",
        "seconds": {"train": round(seconds, 3), "data_wait": round(datamodule.seconds_waited, 3)},
        "continued": None if continued is None else {"from": str(continued.path), "step": continued.step},
        "seed": config.seed,
    }
    summary["cost"]["predicted"] = None if cost is None else as_plain(cost)
    if unsaved is not None:
        if figures and trainer.is_global_zero:
            print(figures_table(figures))
        saved = next((file for name in (LAST, PREVIOUS, "best.ckpt") if (file := last.with_name(name)).exists()), None)
        then = f"continue with ckpt_path={saved}" if saved else "start again in another folder: nothing to continue"
        raise UserError(
            f"hydra.run.dir: {folder} cannot be written ({unsaved}): the training ended, its last state is lost; "
            f"make room and {then}"
        )
    module = consolidated(module, lambda: build_method(config))
    if trainer.is_global_zero:
        facts = run_facts(datamodule.source, plain, figures=figures, step=summary["optimizer_steps"])
        export_backbone(module, folder / "backbone.safetensors", facts)
        write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        if figures:
            source = type(datamodule.source).__name__
            print(f"\n{source}, test split, {module.evaluates} network\n\n{figures_table(figures)}\n")
        if cost is not None and (line := measured_line(cost, summary["cost"]["measured"])):
            print(line)
        spent = f"{duration(seconds)}, {datamodule.seconds_waited / seconds:.1%} of it waiting for data"
        print(f"collapse: {summary['collapse'] or 'none seen'}    training: {spent}    run: {folder}")
        print(f"report: {last_report(module, datamodule, folder, trainer.loggers)}")
    return summary["validation_knn"]


def summarised(
    module: SelfDistillModule[Any, Any], datamodule: DataModule, callbacks: Sequence[L.Callback]
) -> dict[str, Any]:
    """What ``summary.json`` has from the parts of a run that has ended."""

    def only(kind: type[C]) -> C | None:
        return next((callback for callback in callbacks if isinstance(callback, kind)), None)

    monitor, online, probe = only(CollapseMonitor), only(OnlineKNN), only(OnlineProbe)
    update, meter, median = only(TeacherUpdate), only(CostMeter), only(MedianStop)
    return {
        "validation_knn": None if online is None else online.accuracy,
        "validation_probe": None if probe is None else probe.accuracy,
        "collapse": None if monitor is None else monitor.kind,
        "alarms": [] if monitor is None else [asdict(alarm) for alarm in monitor.alarms],
        "mends": [] if monitor is None else monitor.mends,
        "stopped": None if median is None else median.line,
        "cost": {"measured": None if meter is None else meter.measured},
        # the module's own clock has not moved in a run that was at its end already
        "optimizer_steps": module.clock.step if update is None else update.clock.step,
        "unreadable_images": len(datamodule.unreadable),
        "evaluates": module.evaluates,
    }


def _tell_cost(config: DictConfig, folder: Path) -> None:
    plain = resolved(config)
    check_values(plain)
    OmegaConf.resolve(config)
    try:
        print(answer(config))
    finally:
        remove_if_empty(folder)
