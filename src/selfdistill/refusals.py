"""What a command cannot ask for, beside what its configuration cannot be."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.config import UserError
from selfdistill.config.pairs import check_fits
from selfdistill.processes import check_devices


def refuse_flags(arguments: argparse.Namespace) -> None:
    """What Hydra itself answers with a traceback, or not at all.

    Raises:
        UserError: flags that do not go together, or a folder that is not there.
    """
    if arguments.multirun and (arguments.cfg or arguments.info):
        raise UserError("-m: given with --cfg or --info, allowed is one of them; leave -m out")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun: not taken, since it would run a pickle; use --config-path <run>")
    folder = arguments.config_dir
    if folder and "://" not in folder and not Path(folder).is_dir():
        raise UserError(f"--config-dir: {folder!r} given, no such folder; allowed is one with method/, experiment/, …")
    given = next((o for o in arguments.overrides if o.startswith("run_dir=") and o != "run_dir=null"), None)
    if given is not None:
        raise UserError(f"{given.replace('=', ': ', 1)} given, but the run fills it in; set hydra.run.dir=<folder>")


def refuse_parts(config_name: str, plain: Mapping[str, Any]) -> None:
    """What a run here cannot be made of; what it would cost elsewhere can still be asked.

    Raises:
        UserError: in one line.
    """
    if not plain.get("trainer"):
        raise UserError(f"--config-name: {config_name!r} given, allowed is the configuration of a training, as train")
    check_fits(plain)
    if not plain.get("cost_only"):
        check_devices(plain["trainer"])


def refuse_search(overrides: list[str]) -> None:
    """A search space says nothing to a single run.

    Raises:
        UserError: one was given.
    """
    given = next((o for o in overrides if o.startswith("hparams_search=") and o != "hparams_search=null"), None)
    if given is not None:
        raise UserError(f"hparams_search: {given.partition('=')[2]} given for a single run; -m makes it a search")
