"""Every shell command on the pages."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from read_pages import Block, blocks

# <what the reader fills in>, or … in the place of a value
PLACEHOLDER = re.compile(r"[\w./-]*<[^<>\n]+>|(?<==)…")
_OURS = re.compile(r"(?:(?:python|torchrun [^|]*?) -m src\.|selfdistill-)(\w+)")
# Hydra's own flags, which print something instead of running
PRINTS = re.compile(r" --(?:info|shell-completion|config-path)\b")
# data sets, hours on GPUs, a cluster, a network
NOT_HERE = re.compile(
    r"\bdata=(?:cifar100?|stl10|imagenet\w*)(?!\w)|\bexperiment=|\btorchrun\b|\bsrun\b|\bsubmitit_slurm\b|\bs3://"
)
# a run, a file or a folder that has to be there, or further processes
_MADE = re.compile(r"<.+?>| --config-path | '?data\.root=| trainer=ddp\b")


@dataclass(frozen=True)
class Command:
    """A line of a shell block."""

    text: str
    where: str
    run: bool
    titled: bool

    @property
    def ours(self) -> str | None:
        """The name of our command, if it is one."""
        found = _OURS.match(self.text)
        return found[1] if found else None

    @property
    def run_after(self) -> bool:
        """Whether it takes what an earlier command made."""
        return not self.titled and self.ours in ("evaluate", "export", "report", "pack") and "=…" not in self.text

    @property
    def trains_on(self) -> bool:
        """Whether it trains on, or shows, what has to be made for it; or in several processes."""
        made = self.ours in ("train", "preview") and _MADE.search(self.text) is not None
        return made and not self.titled and not NOT_HERE.search(self.text)

    def words(self, filled: Path) -> list[str]:
        """As the shell splits it, with what the reader fills in."""
        return shlex.split(PLACEHOLDER.sub(str(filled), self.text).replace(" … ", " "), comments=True)

    def arguments(self, filled: Path) -> list[str]:
        """What one of ours is given; a folder of images that is named is there."""
        words = self.words(filled)
        start = next(i for i, word in enumerate(words) if word.startswith(("src.", "selfdistill-")))
        root = re.compile(r"data\.root=(?!\w+://).*")
        return [root.sub(f"data.root={filled}", word) for word in words[start + 1 :]]


def lines(block: Block) -> list[str]:
    """What the shell reads of it: continued lines joined, without comments."""
    found = [re.sub(r"(^|\s+)#.*", "", line.strip()) for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in found if line]


def _commands() -> list[Command]:
    found: dict[str, Command] = {}
    for block in blocks("bash"):
        for line in lines(block):
            text = line.removeprefix("srun ")
            run = block.run and not line.startswith(("srun ", "torchrun ")) and not re.search("<.+>|…", text)
            found.setdefault(text, Command(text, f"{block.page}:{block.line}", run, not block.run))
    return list(found.values())


COMMANDS = _commands()
OURS = [command for command in COMMANDS if command.ours and not PRINTS.search(command.text)]
FLAGS = {"--help", "--cfg", "job", "--resolve", "-m"}


def overrides_of(words: list[str], written: Path) -> tuple[list[str], list[str]]:
    """Overrides of a command, and where it finds further configurations."""
    rest, folders = [], []
    remaining = iter(words)
    for word in remaining:
        if word == "--config-dir":
            folders.append(f"file://{written / next(remaining)}")
        elif word == "-p":
            next(remaining)
        elif word not in FLAGS:
            rest.append(word)
    return rest, folders
