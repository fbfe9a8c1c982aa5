"""The folder of a run: taking it, giving it back, what is written beside the products."""

from __future__ import annotations

import json
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from selfdistill.config import CONF, UserError, resolved
from selfdistill.config.repeat import relocatable
from selfdistill.files import LOG, remove_if_only, write_text
from selfdistill.provenance import provenance
from selfdistill.resume import AUTO

# Folders that this process made a run's.
_claimed: set[Path] = set()


def claim(folder: Path, config: DictConfig) -> None:
    """Write the resolved configuration and where it comes from; a folder that holds a run already is refused.

    Only ``ckpt_path=auto`` goes on in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.ckpt_path != AUTO:
            open(folder / "config.yaml", "x").close()
        _claimed.add(folder)
        stored = relocatable(resolved(config), str(folder))
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(stored)))
        write_text(folder / "provenance.json", json.dumps(provenance(), indent=2) + "\n")
    except FileExistsError:
        raise UserError(f"hydra.run.dir: {folder} holds a run already; choose another folder") from None
    except OSError as error:
        raise UserError(f"hydra.run.dir: {folder} cannot be written ({error.strerror}); choose another") from None


def remove_if_empty(folder: Path) -> None:
    """Nothing but the log and what :func:`claim` wrote in it: nothing was trained, so another try may have the folder.

    What another process wrote there, which had the folder first, stays.
    """
    remove_if_only(folder, {LOG, "config.yaml", "provenance.json"} if folder in _claimed else {LOG})


def tell_unreadable(names: list[str], file: Path) -> None:
    """A line, and the names in ``file``, where images were skipped."""
    if names:
        write_text(file, "\n".join(names) + "\n")
        print(f"{len(names):,} images cannot be read and were skipped, named in {file}; the first: {names[0]}")


def method_name(target: str) -> str | None:
    """The choice of ``method``, or, in a run that is repeated from its folder, the file that names this class."""
    if not HydraConfig.initialized():
        return None
    chosen: str | None = HydraConfig.get().runtime.choices.get("method")
    files = sorted((CONF / "method").glob("*.yaml"))
    named = (file.stem for file in files if f"_target_: {target}\n" in file.read_text(encoding="utf-8"))
    return chosen or next(named, target.rpartition(".")[2])
