"""What ``--help`` prints: what there is to choose, what each is for, commands to copy. Nothing is composed."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

_CONF = Path(__file__).parents[1] / "conf"
_WIDTH = 116

# Groups in the order in which one thinks of them, and what each decides.
GROUPS = {
    "method": "how the student learns from its teacher; brings views, divergence, teacher, schedule and optimizer",
    "data": "the images; data.root=<folder>, data.batch_size=<images>",
    "backbone": "the network that is trained; backbone=timm backbone.name=<any timm model>",
    "views": "the crops and augmentations that both sides see; python -m src.preview shows them",
    "divergence": "D of L = D(student, teacher); auto is the method's own",
    "teacher": "where the targets come from and how they follow the student; teacher.momentum=<0 to 1>",
    "schedule": "how the teacher's momentum goes from teacher.momentum to teacher.momentum_end",
    "objective": "a further loss, or several: 'objective=[koleo,contrastive]'; objective.weight=<number>",
    "optimizer": "auto is the paper's, or what suits small data; optimizer.lr=<number>",
    "trainer": "Lightning's Trainer: trainer.max_epochs, .accelerator, .devices, .precision, …",
    "callbacks": "what watches the run: collapse monitor, k-NN, checkpoints; probe adds a linear classifier",
    "logger": "where the curves go, beside metrics.csv; wandb is offline unless logger.offline=false",
    "evaluation": "the figures at the end of a run",
    "experiment": "a paper's whole recipe; the command line still wins",
    "hparams_search": "ranges to sweep over, with -m",
    "debug": "fast: seconds, any setting; limit: a quarter of the data; overfit: one batch; profile: where time goes",
    "protocol": "how a trained network is measured; several in brackets: 'protocol=[knn,linear]'",
}
COMMANDS = {
    "train": (
        ("python -m src.train", "BYOL on the embedded digits, about a minute"),
        ("python -m src.train debug=fast", "any setting in seconds, with the files of a full run"),
        ("python -m src.train method=dino_like data=shapes backbone=small_vit", "another method, data and network"),
        ("python -m src.train method=ema_teacher divergence=kl schedule=cosine teacher.momentum_end=1", "its parts"),
        ("python -m src.train data=folder data.root=<folder of images> trainer.max_epochs=50", "your own images"),
        ("python -m src.train data=cifar10 data.download=true backbone=resnet18 trainer.accelerator=gpu", "a GPU"),
        ("python -m src.train seed=1 deterministic=true hydra.run.dir=outputs/mine", "repeatable, in a folder named"),
        ("python -m src.train ckpt_path=<run>/checkpoints/last.ckpt", "continue a run; give its settings again"),
        ("python -m src.train --config-path <run> -cn config", "repeat a run, bit for bit on a CPU"),
        ("python -m src.train -m method=byol_like,ema_teacher divergence=l2,cosine", "a sweep: every combination"),
    ),
    "evaluate": (
        ("python -m src.evaluate checkpoint=<run>", "every protocol, on the run's own data"),
        (
            "python -m src.evaluate checkpoint=<run> 'protocol=[knn,linear]' data=cifar10 data.root=<folder>",
            "other data",
        ),
        ("python -m src.evaluate checkpoint=<a file of others> backbone=vit_small data=cifar10 data.root=<folder>", ""),
    ),
    "export": (
        ("python -m src.export checkpoint=<run>", "safetensors, of any network"),
        ("python -m src.export checkpoint=<run> format=onnx", "of any network; pip install 'selfdistill[onnx]'"),
        ("python -m src.export checkpoint=<run> format=timm", "of a network of timm: backbone=resnet18, vit_tiny, …"),
        ("python -m src.export checkpoint=<run> network=teacher output=teacher.safetensors", ""),
    ),
    "pack": (
        ("python -m src.pack source=<folder of images> output=<new folder>", ""),
        ("python -m src.pack source=<folder of images> output=<new folder> max_side=256", "smaller files"),
    ),
    "preview": (
        ("python -m src.preview views=dino data=shapes", ""),
        ("python -m src.preview views=byol data=folder data.root=<folder> images=10 output=views.png", ""),
    ),
    "report": (("python -m src.report run=<run>", ""),),
}
_CLOSING = {
    "train": """\
A setting is key=value; the order does not matter and the command line wins over everything. Lists and text with
special characters stand in quotes: 'evaluation.shots=[1,5]' 'data.root="my ümages"'. Results: outputs/<method>/<time>/.

  --cfg job            the whole configuration; with --resolve, its references filled in
  --cfg job -p teacher one group of it
  --multirun, -m       a sweep: key=a,b,c
  --config-dir <dir>   your own method/mine.yaml, experiment/mine.yaml, …
  --hydra-help         Hydra's own flags; shell completion: docs/how_to/hydra.md
""",
}


def help_text(name: str) -> str:
    """The page of one command, by the name of its configuration."""
    text = (_CONF / f"{name}.yaml").read_text(encoding="utf-8")
    about = " ".join(line.removeprefix("#").strip() for line in _head(text))
    groups = [g for g in GROUPS if re.search(rf"^  - (override /)?{g}: ", text, re.MULTILINE)]
    if name == "train":
        about = "Train one method of self-distillation: a student learns from a teacher made of itself."
    lines = [*textwrap.wrap(about, _WIDTH), "", "Copy a command:", ""]
    lines += [f"  {command:<72}  # {meaning}" if meaning else f"  {command}" for command, meaning in COMMANDS[name]]
    if groups:
        lines += ["", "Choose with group=name:", ""]
    for group in groups:
        choices = ", ".join(sorted(file.stem for file in (_CONF / group).glob("*.yaml")))
        lines += [f"  {group:<15} {GROUPS[group]}"]
        lines += textwrap.wrap(choices, _WIDTH, initial_indent=" " * 20, subsequent_indent=" " * 20)
    lines += ["", "Settings of the command itself:", ""]
    for key, value, note in _settings(text):
        lines += textwrap.wrap(
            f"{f'{key}={value}':<22} {note}", _WIDTH, initial_indent="  ", subsequent_indent=" " * 25
        )
    closing = _CLOSING.get(name, "--cfg job prints the whole configuration, --hydra-help Hydra's own flags.\n")
    return "\n".join([*lines, "", closing])


def _head(text: str) -> list[str]:
    """The comment that a file begins with."""
    lines = text.splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def _settings(text: str) -> list[tuple[str, str, str]]:
    """Top-level keys that are plain values: name, default, the comment above."""
    found, note = [], ""
    for line in text.splitlines():
        match = re.fullmatch(r"([a-z_]+): ([^#]+?)(?: # (.*))?", line)
        if line.startswith("# "):
            note = f"{note} {line[2:]}".strip()
        elif match and match[1] != "defaults":
            value = {"???": "<needed>", "{}": "{…}"}.get(match[2], match[2])
            found.append((match[1], value, match[3] or note))
            note = ""
        else:
            note = ""
    return [entry for entry in found if entry[0] not in ("run_dir", "scale")]
