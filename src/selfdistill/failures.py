"""What a user reads where something cannot work: one line for a mistake, and no chatter of other libraries."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning

from selfdistill.callbacks import CollapseError
from selfdistill.config import UserError
from selfdistill.methods.finite import NonFiniteLossError


@contextmanager
def clear_errors() -> Iterator[None]:
    """A mistake that this package found becomes one line; an error from elsewhere keeps its traceback."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException):
            key = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
            raise UserError(f"{key[1] if key else 'trainer'}: {' '.join(str(error.__cause__).split())}") from error
        if isinstance(error.__cause__, ValueError | TypeError | ImportError):
            raise UserError(str(error.__cause__)) from error.__cause__
        if "blocklisted" in str(error):  # Hydra makes nothing that runs commands or touches files
            raise UserError(f"_target_: {str(error).splitlines()[0]}") from error
        raise
    except (NonFiniteLossError, CollapseError) as error:
        raise UserError(str(error)) from error
    except MisconfigurationException as error:  # Lightning's word for a setting that cannot work
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except TypeError as error:
        if (found := re.fullmatch(r"init\(\) got an unexpected keyword argument '(\w+)'", str(error))) is None:
            raise
        raise UserError(f"logger.wandb.{found[1]}: no argument of wandb.init; leave it out") from error
    except ValueError as error:
        if (said := _said_in_worker(str(error))) is not None:
            raise UserError(said) from error
        if _raised_here(error):
            raise UserError(str(error)) from error
        raise
    except Exception as error:
        if not type(error).__module__.startswith("wandb."):
            raise
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"logger.offline: false given, but wandb does not take the run ({said}); log in (wandb login), or leave it "
            "out"
        ) from error


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
