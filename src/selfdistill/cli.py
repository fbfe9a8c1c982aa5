"""From the shell to a run: check first, then hand over to Hydra; one line for a user's mistake."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from selfdistill.config import CONF, UserError, check, resolved
from selfdistill.config.help import help_text
from selfdistill.config.overrides import without_nulls
from selfdistill.config.repeat import refuse_groups, stored_config
from selfdistill.files import LOG, remove_if_only
from selfdistill.processes import IN_SWEEP, is_first, refuse_folders_apart, speaks
from selfdistill.refusals import refuse_flags, refuse_parts, refuse_search

_HOMES = {
    "fit": "selfdistill.runner",
    "evaluate": "selfdistill.tasks",
    "export": "selfdistill.tasks",
    "preview": "selfdistill.preview",
    "report": "selfdistill.report",
}


def launch(main: Callable[[], Any], config_name: str) -> None:
    """Run a ``@hydra.main`` function as a command.

    A single run is composed and checked before Hydra makes its folder. Exit codes: 0 done, 2 a mistake
    in the command, 130 stopped by Ctrl-C, 143 by SIGTERM, 1 anything else.
    """
    _refuse_dashes()
    arguments = get_args_parser().parse_intermixed_args()
    _overrides_last(arguments, config_name)
    own_errors = "HYDRA_FULL_ERROR" not in os.environ
    # Hydra would print its own report; with this it lets the exception through to here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    passes = arguments.hydra_help or arguments.info or arguments.cfg
    passes = passes or arguments.shell_completion
    try:
        if arguments.help:
            print(help_text(config_name), flush=True)
            return
        refuse_flags(arguments)
        conf = stored_config(arguments) if config_name == "train" else None
        if conf is not None:
            refuse_groups(conf, arguments.overrides)
        if arguments.multirun and config_name == "train" and not (arguments.cfg or arguments.info):
            from selfdistill.sweeps import sweep

            sys.exit(sweep(main, arguments, config_name))
        if not arguments.multirun and IN_SWEEP not in os.environ:
            refuse_search(arguments.overrides)
        if not passes and (conf or not arguments.config_path):
            folder = arguments.config_dir
            found = [f"file://{os.path.abspath(folder)}"] if folder else []
            jobs = _jobs(arguments.overrides) if arguments.multirun else [arguments.overrides]
            name = arguments.config_name or config_name
            checked = [check(name, j, search_path=found, conf=conf or CONF) for j in jobs]
            if not arguments.multirun and config_name == "train":  # the others' folder is the working directory
                refuse_folders_apart(arguments.overrides)
                refuse_parts(name, checked[0].plain)
            for line in dict.fromkeys(line for each in checked for line in each.warnings):
                if is_first():
                    print(f"warning: {line}", file=sys.stderr)
        main()
    except BrokenPipeError:
        # the reader (head, less) has seen enough; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not own_errors:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _end("error: no space left on the disk; free some; ckpt_path=<run> goes on where there is a checkpoint", 1)
        if error.filename is None:
            raise
        _end(f"error: hydra.run.dir: {error.filename} cannot be made ({error.strerror}); choose another folder", 2)
    except SystemExit as end:
        if not own_errors and isinstance(end.__context__, UserError | OSError):
            traceback.print_exception(end.__context__)
        raise
    except KeyboardInterrupt:
        # torch, half imported, logs at exit into the folder that is gone
        logging.disable()
        _end("interrupted before the first step: nothing to continue", 130)
    except (UserError, HydraException) as error:
        if not own_errors:
            raise
        _end(f"error: {' '.join(str(error).split())}", 2)


@hydra.main(version_base="1.3", config_path="pkg://selfdistill.conf", config_name="train")
def _train(config: DictConfig) -> float | None:
    return job("fit", config)


@hydra.main(version_base="1.3", config_path="pkg://selfdistill.conf", config_name="evaluate")
def _evaluate(config: DictConfig) -> float | None:
    return job("evaluate", config)


@hydra.main(version_base="1.3", config_path="pkg://selfdistill.conf", config_name="export")
def _export(config: DictConfig) -> None:
    job("export", config)


@hydra.main(version_base="1.3", config_path="pkg://selfdistill.conf", config_name="pack")
def _pack(config: DictConfig) -> None:
    job("pack", config)


@hydra.main(version_base="1.3", config_path="pkg://selfdistill.conf", config_name="preview")
def _preview(config: DictConfig) -> None:
    job("preview", config)


@hydra.main(version_base="1.3", config_path="pkg://selfdistill.conf", config_name="report")
def _report(config: DictConfig) -> None:
    job("report", config)


def train() -> None:
    """The command ``selfdistill-train``: what ``python -m src.train`` does, from anywhere."""
    launch(_train, "train")


def evaluate() -> None:
    """The command ``selfdistill-evaluate``."""
    launch(_evaluate, "evaluate")


def export() -> None:
    """The command ``selfdistill-export``."""
    launch(_export, "export")


def pack() -> None:
    """The command ``selfdistill-pack``."""
    launch(_pack, "pack")


def preview() -> None:
    """The command ``selfdistill-preview``."""
    launch(_preview, "preview")


def report() -> None:
    """The command ``selfdistill-report``."""
    launch(_report, "report")


def _refuse_dashes() -> None:
    """What argparse would answer with its usage: a setting written as a flag."""
    flags = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    for text in sys.argv[1:]:
        name = text.partition("=")[0]
        # argparse takes the beginnings of its flags too
        if re.fullmatch(r"--\w[\w./]*=.*", text, re.DOTALL) and not any(flag.startswith(name) for flag in flags):
            _end(f"error: {name}: given as a flag, settings have no dashes; write {text.lstrip('-')}", 2)


def _overrides_last(arguments: argparse.Namespace, config_name: str) -> None:
    """Hydra takes them in one place only; a flag may stand between them. What it has no word for is left out."""
    flags = sys.argv[1:]
    for text in arguments.overrides:
        flags.remove(text)
    arguments.overrides = without_nulls(arguments.config_name or config_name, arguments.overrides)
    sys.argv[1:] = [*flags, *arguments.overrides]


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The jobs of a sweep, so that all are checked before the first one runs; none with a sweeper of another kind."""
    if any(override.startswith("hydra/sweeper") for override in overrides):
        return []
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def job(task: str, config: DictConfig) -> Any:
    """What a ``@hydra.main`` function does: call the task of that name (a key of ``_HOMES``, or ``pack``).

    In a single run a user's mistake ends here in one line, and so does a file that cannot be read or
    written; in a sweep both go to Hydra's launcher, so that the other jobs go on. A training that is a job
    of a sweep gets its own process.
    """
    try:
        if task == "fit" and HydraConfig.get().mode == RunMode.MULTIRUN:
            from selfdistill.sweeps import run_job

            return run_job(config)
        if task == "pack":
            return _packed(config)
        return getattr(importlib.import_module(_HOMES[task]), task)(config)
    except KeyboardInterrupt:
        if task == "fit":  # during the imports, before the run has its folder in hand
            remove_if_only(Path(HydraConfig.get().runtime.output_dir), {LOG})
        raise
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _end(f"error: {error}", 2)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or error.filename is None or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _end(f"error: {error.filename}: {error.strerror}", 1)


def _packed(config: DictConfig) -> None:
    from selfdistill.data.packing import pack
    from selfdistill.failures import clear_errors

    settings = resolved(config)
    try:
        with clear_errors():
            done = pack(**settings)
    except KeyboardInterrupt:
        _end("stopped: the same command continues", 130)
    images = ", ".join(f"{split} {count:,}" for split, count in done.images.items())
    skipped = f"; {done.skipped:,} unreadable files skipped, named in skipped.txt" if done.skipped else ""
    print(f"written: {settings['output']}: {images} images in {done.shards:,} shards{skipped}")


def _end(line: str, code: int) -> NoReturn:
    if speaks():
        print(line, file=sys.stderr)
    sys.exit(code)
