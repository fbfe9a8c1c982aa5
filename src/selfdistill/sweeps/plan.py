"""What the command of a sweep asks for: its jobs, the keys that vary, its folder."""

from __future__ import annotations

import hashlib
import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from selfdistill.config import CONF, Checked, UserError, check, flatten
from selfdistill.config.hints import elsewhere
from selfdistill.config.pairs import check_fits
from selfdistill.config.quoting import searched

_LAUNCHING = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.")
# Groups that may choose a sweeper or a launcher; values of the command line may need a method that is swept.
_CHOOSERS = ("experiment", "hparams_search", "debug")
_PLUGINS = ("hydra/sweeper", "hydra/launcher")


@dataclass(frozen=True)
class Plan:
    """A sweep before it starts.

    Attributes:
        folder: where it goes.
        swept: the keys that vary, in the order of the command.
        jobs: the overrides of each job; None where a search finds them as it goes.
        fixed: of a search: the overrides that all jobs have.
        search: of a search: the values to choose from by key, as in the command.
        choosers: the overrides of the command that say how it is launched.
        flags: options of the command that each job has too.
        config_name: of the configuration.
        search_path: more folders of configurations.
        conf: where the configuration lies.
    """

    folder: Path
    swept: list[str]
    jobs: list[list[str]] | None
    fixed: list[str]
    search: dict[str, str]
    choosers: list[str]
    flags: list[str]
    config_name: str
    search_path: list[str]
    conf: Path

    def composed(self, overrides: list[str]) -> Checked:
        """The configuration of what all jobs of a search have; what is searched may be what makes the parts fit.

        Raises:
            UserError: it cannot work.
        """
        return check(self.config_name, overrides, search_path=self.search_path, conf=self.conf)

    def check(self, overrides: list[str]) -> Checked:
        """One job's configuration.

        Raises:
            UserError: it cannot work.
        """
        checked = self.composed(overrides)
        check_fits(checked.plain)
        return checked


def plan(arguments: Namespace, config_name: str) -> Plan:
    """Read the command.

    Args:
        arguments: Hydra's, parsed.
        config_name: where the command does not name another.

    Raises:
        UserError: it cannot be read.
    """
    name = arguments.config_name or config_name
    search_path = [f"file://{Path(arguments.config_dir).resolve()}"] if arguments.config_dir else []
    conf = Path(arguments.config_path) if arguments.config_path else CONF
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            given = parser.parse_overrides(arguments.overrides)
            # one that is swept itself chooses no sweeper
            choosers = [
                o.input_line
                for o in given
                if o.is_hydra_override() or (o.key_or_group in _CHOOSERS and not o.is_sweep_override())
            ]
            settings = _launching(choosers, search_path)
            params = parser.parse_overrides([f"{k}={v}" for k, v in (settings.sweeper.get("params") or {}).items()])
            if params:
                chosen = [o.input_line for o in given if (CONF / o.key_or_group).is_dir() and not o.is_sweep_override()]
                there = _keys([text for text in chosen if text not in choosers], choosers, search_path)
                # a search holds for what there is: what only another choice has is left out, a mistake is not
                params = [o for o in params if o.is_add() or o.key_or_group in there or not _of_others(o.key_or_group)]
            # the command's value of a key stands for the one of the configuration
            mine = {o.key_or_group: o for o in (*params, *given) if not o.input_line.startswith(_LAUNCHING)}
            varied = {key: o for key, o in mine.items() if o.is_sweep_override()}
            _refuse_unfit(mine)
            jobs = None
            if settings.sweeper._target_.endswith(".BasicSweeper"):
                jobs = BasicSweeper.split_arguments(list(mine.values()), None)[0]
    except HydraException as error:
        # the same mistake in a single job has a clear line
        single = [text for text in arguments.overrides if "," not in text and "(" not in text]
        check(name, single, search_path=search_path, conf=conf)
        raise UserError(" ".join(str(error).split())) from None
    folder = Path(settings.sweep.dir)
    if not any(o.key_or_group == "hydra.sweep.dir" for o in given):
        where = [str(conf)] if arguments.config_path else []
        folder /= _name(list(varied), [name, *where, *arguments.overrides])
    options = {"--config-path": "config_path", "--config-name": "config_name", "--config-dir": "config_dir"}
    return Plan(
        folder=folder.resolve(),
        swept=list(varied),
        jobs=jobs,
        fixed=[o.input_line for key, o in mine.items() if key not in varied],
        search={o.get_key_element(): o.input_line.partition("=")[2] for o in varied.values()} if jobs is None else {},
        choosers=choosers,
        flags=[text for flag, key in options.items() if (v := getattr(arguments, key)) for text in (flag, v)],
        config_name=name,
        search_path=search_path,
        conf=conf,
    )


def neutral(key: str) -> str:
    """What Hydra's sweeper calls ``key``: a name that composes with every configuration."""
    return "sweep_" + re.sub(r"\W", "_", key.lstrip("+"))


def program() -> list[str]:
    """How this command was started, to start it again for a job."""
    spec = sys.modules["__main__"].__spec__
    return [sys.executable, *(["-m", spec.name] if spec else [sys.argv[0]])]


def settings_of(overrides: list[str], swept: list[str]) -> dict[str, str]:
    """Those of ``overrides`` that vary in the sweep, by key."""
    values = dict(text.partition("=")[::2] for text in overrides)
    found = {key.lstrip("+"): value for key, value in values.items()}
    return {key: found[key] for key in swept if key in found}


def _refuse_unfit(given: Mapping[str, Override]) -> None:
    """Keys that a sweep cannot have."""
    if (path := given.get("ckpt_path")) is not None and path.is_sweep_override():
        raise UserError(
            "ckpt_path: several given to a sweep, allowed is one: its jobs are told apart by the rest of their "
            "configuration; start one sweep for each"
        )
    if (cost := given.get("cost_only")) is not None and cost.value() is not False:
        raise UserError("cost_only: given to a sweep, whose jobs train; without -m it tells what one of them costs")


def _launching(choosers: list[str], search_path: list[str]) -> DictConfig:
    """Hydra's own settings under ``choosers``."""
    path = [searched(search_path)] if search_path else []
    try:
        return compose("train", overrides=[*choosers, *path], return_hydra_config=True).hydra
    except HydraException as error:
        missing = next((plugin for plugin in _PLUGINS if f"'{plugin}/" in str(error)), None)
        if missing is None:
            raise
        said = str(error).splitlines()[0].strip()
        raise UserError(
            f"{missing}: {said}; pip install 'selfdistill[sweeps]' brings optuna, joblib, submitit"
        ) from None


def _keys(groups: list[str], choosers: list[str], search_path: list[str]) -> set[str]:
    """The keys that there are under these choices."""
    path = [searched(search_path)] if search_path else []
    plain = OmegaConf.to_container(compose("train", overrides=[*choosers, *groups, *path]), resolve=False)
    assert isinstance(plain, dict)
    return {key for key, _ in flatten({str(name): value for name, value in plain.items()})}


def _name(swept: list[str], command: list[str]) -> str:
    """Of the folder: the same command finds it again; how jobs are launched does not matter."""
    kept = sorted(text for text in command if not text.startswith(("hydra/launcher", "hydra.launcher")))
    keys = "-".join(key.rpartition(".")[2] for key in swept[:4]) or "single"
    return f"{keys}-{hashlib.sha256(repr(kept).encode()).hexdigest()[:8]}"


def _of_others(key: str) -> bool:
    """Whether another choice of the key's group states it; a place in a list is nobody's."""
    return bool(elsewhere(key)) and not any(part.isdigit() for part in key.split("."))
