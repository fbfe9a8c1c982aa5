"""What ``--config-path`` names: a run's folder, to run it again (``-cn config``), or the user's own configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdistill.config.errors import UserError
from selfdistill.config.overrides import split

_FLAGS = ("--config-path", "-cp")
# What the stored configuration leaves to Hydra: a folder of its own, and the log in it.
_HYDRA = (
    "hydra.searchpath=[pkg://selfdistill.conf]",
    "hydra/job_logging=selfdistill",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=outputs/repeated/${now:%Y-%m-%d_%H-%M-%S-%f}",
)


def stored_config(arguments: argparse.Namespace) -> Path | None:
    """The folder that ``--config-path`` names, from the working directory; None without one, or where it is an address.

    ``arguments`` and ``sys.argv`` then name it in full, and say how a run is run again where it is the folder of one.

    Raises:
        UserError: there is no such folder.
    """
    if not arguments.config_path or "://" in arguments.config_path:
        return None
    folder = Path(arguments.config_path).resolve()
    if not folder.is_dir():
        raise UserError(
            f"--config-path: {arguments.config_path!r} given, no such folder; allowed is the folder of a run, or of "
            "configurations"
        )
    run = all((folder / name).is_file() for name in ("config.yaml", "provenance.json"))
    if not run or arguments.config_name not in (None, "config"):
        arguments.config_path = str(folder)
        for i, text in enumerate(sys.argv):  # Hydra would look beside the program
            flag, _, value = text.partition("=")
            if flag in _FLAGS and value:
                sys.argv[i] = f"{flag}={folder}"
            elif sys.argv[i - 1] in _FLAGS:
                sys.argv[i] = str(folder)
        return folder
    own = [text for text in _HYDRA if not any(o.startswith(text.partition("=")[0]) for o in arguments.overrides)]
    arguments.config_path, arguments.config_name = str(folder), "config"
    arguments.overrides = ["run_dir=null", *own, *arguments.overrides]
    flags = [f"--cfg={arguments.cfg}"] if arguments.cfg else []
    flags += ["--resolve"] if arguments.resolve else []
    flags += ["--multirun"] if arguments.multirun else []
    sys.argv = [sys.argv[0], "--config-path", str(folder), "--config-name", "config", *flags, *arguments.overrides]
    return folder


def refuse_groups(conf: Path, overrides: Sequence[str]) -> None:
    """The stored configuration of a run has no groups to choose from.

    Raises:
        UserError: one was given.
    """
    if (conf / "provenance.json").is_file():
        for group, text in split(overrides)[1]:
            if not group.startswith("hydra"):
                raise UserError(
                    f"{group}: {text.partition('=')[2]} given, but the configuration of a run has no groups; set "
                    f"single keys ({group}.…=), or give what it was made with to python -m src.train"
                )


def relocatable(plain: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """``plain`` with paths inside the run's ``folder`` as ``${run_dir}``: a repeated run has its own."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, list):
            return [moved(item) for item in value]
        if isinstance(value, str) and (value == folder or value.startswith(f"{folder}/")):
            return "${run_dir}" + value[len(folder) :]
        return value

    return {key: value if key == "run_dir" else moved(value) for key, value in plain.items()}
