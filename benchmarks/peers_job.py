"""The default job, BYOL on digits, beside the same job written on lightly's parts.

Same network, sizes, optimizer, rates, momentum, batches, epochs and evaluation; views of the same ranges, made image
by image with torchvision, as a user of lightly makes those of a data set of their own. Each run is a process of its
own; ours keeps the memory that it frees, as our command does.

python benchmarks/peers_job.py --seeds 3
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from measure import machine
from runs import table, write_section
from torch import Tensor, nn

from selfdistill.allocator import keep_freed_memory
from selfdistill.assembly import build_callbacks, build_data, build_method, build_trainer
from selfdistill.config import check
from selfdistill.data import DataModule
from selfdistill.networks import SmallCNN

EPOCHS, BATCH, EVERY, ENOUGH = 100, 128, 5, 0.98
Curve = list[tuple[float, float]]
"""Seconds since the start and k-NN on the validation split, after every fifth epoch, as the default job has it."""


class Watch(L.Callback):
    def __init__(self) -> None:
        self.curve: Curve = []
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % EVERY == 0:
            self.curve.append((time.process_time() - self.start, float(trainer.callback_metrics["val/knn"])))


def ours(seed: int) -> Curve:
    keep_freed_memory()
    config = check("train", ["trainer.enable_progress_bar=false", f"trainer.max_epochs={EPOCHS}"]).config
    L.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        config.run_dir, config.seed = folder, seed
        watch = Watch()
        trainer = build_trainer(config, [*build_callbacks(config, Path(folder)), watch])
        trainer.fit(build_method(config), build_data(config))
    return watch.curve


class Drawings(torch.utils.data.Dataset[tuple[list[Tensor], Tensor]]):
    """Two views of each training image."""

    def __init__(self, images: Tensor, mean: float, std: float) -> None:
        from lightly.transforms.multi_view_transform import MultiViewTransform
        from torchvision.transforms import v2

        view = v2.Compose(
            [
                v2.RandomAffine(20, (0.1, 0.1), (0.8, 1.2), 15, interpolation=v2.InterpolationMode.BILINEAR),
                v2.ColorJitter(0.3, 0.3),
                v2.GaussianNoise(sigma=0.1, clip=False),
                v2.Normalize([mean], [std]),
            ]
        )
        self.images, self.views = images, MultiViewTransform([view, view])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        return self.views(self.images[index]), torch.tensor(index)


@torch.no_grad()
def evaluated(backbone: nn.Module, bank: list[Tensor], queries: list[Tensor]) -> float:
    from lightly.utils.benchmarking import knn_predict

    backbone.eval()
    features = F.normalize(backbone(bank[0]).pooled, dim=1).T
    voted = knn_predict(F.normalize(backbone(queries[0]).pooled, dim=1), features, bank[1], 10, 20, 0.07)[:, 0]
    backbone.train()
    return (voted == queries[1]).double().mean().item()


def theirs(seed: int) -> Curve:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.utils.scheduler import cosine_schedule

    data: DataModule = build_data(check("train", []).config)
    whole, queries = (
        [torch.cat(parts) for parts in zip(*data.evaluation_loader(split), strict=True)]
        for split in ("train", "validation")
    )
    mean, std = data.source.mean[0], data.source.std[0]
    torch.manual_seed(seed)
    student = nn.ModuleList([SmallCNN(1), BYOLProjectionHead(256, 512, 128), BYOLPredictionHead(128, 512, 128)])
    teacher = copy.deepcopy(student[:2])
    deactivate_requires_grad(teacher)
    loader = torch.utils.data.DataLoader(
        Drawings(whole[0] * std + mean, mean, std), batch_size=BATCH, shuffle=True, drop_last=True
    )
    slow = [*student[0].parameters(), *student[1].parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": slow, "peak": 0.002}, {"params": student[2].parameters(), "peak": 0.01}], weight_decay=1e-4
    )
    criterion, total, warmup = NegativeCosineSimilarity(), EPOCHS * len(loader), 5 * len(loader)
    curve: Curve = []
    start, step = time.process_time(), 0
    for epoch in range(EPOCHS):
        for views, _ in loader:
            done = (step - warmup) / (total - warmup)
            factor = step / warmup if step < warmup else (1 + math.cos(math.pi * done)) / 2
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
            momentum = cosine_schedule(step, total, 0.95, 1.0)
            for network, follower in zip(student[:2], teacher, strict=True):
                update_momentum(network, follower, momentum)
            given = [student[2](student[1](student[0](view).pooled)) for view in views]
            with torch.no_grad():
                wanted = [teacher[1](teacher[0](view).pooled) for view in views]
            loss = (criterion(given[0], wanted[1]) + criterion(given[1], wanted[0])) / 2
            optimizer.zero_grad()
            (4 * loss).backward()
            optimizer.step()
            step += 1
        if (epoch + 1) % EVERY == 0:
            curve.append((time.process_time() - start, evaluated(student[0], whole, queries)))
    return curve


SIDES = {"ours": ours, "lightly's parts": theirs}


def in_process(side: str, seed: int) -> Curve:
    command = [sys.executable, __file__, "--run", side, str(seed)]
    last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return [(seconds, accuracy) for seconds, accuracy in json.loads(last)]


def said(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("SIDE", "SEED"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if given.run:
        print(json.dumps(SIDES[given.run[0]](int(given.run[1]))))
        return
    curves: dict[str, list[Curve]] = {side: [] for side in SIDES}
    for seed in range(given.seeds):
        for side in SIDES:
            curves[side].append(in_process(side, seed))
            print(side, seed, curves[side][-1][-1], file=sys.stderr)
    rows = []
    for side, runs in curves.items():
        enough = [next((seconds for seconds, accuracy in run if accuracy >= ENOUGH), None) for run in runs]
        reached = [seconds for seconds in enough if seconds is not None]
        rows.append(
            [
                side,
                said([run[-1][0] for run in runs], 0),
                said([run[-1][1] for run in runs], 3),
                said([max(accuracy for _, accuracy in run) for run in runs], 3),
                f"{said(reached, 0)}, {len(reached)} of {len(runs)} seeds" if reached else "–",
            ]
        )
    ratios = [other[-1][0] / own[-1][0] for own, other in zip(*curves.values(), strict=True)]
    header = ["job", "processor seconds", "k-NN at the end", "best k-NN", f"seconds to a k-NN of {ENOUGH}"]
    write_section(
        "peers job",
        f"### The default job, beside lightly's parts\n\n`python benchmarks/peers_job.py --seeds {given.seeds}`: "
        f"{machine()}, mean (least–most) of {given.seeds} seeds, BYOL on digits, {EPOCHS} epochs, k-NN on the "
        f"validation split after every fifth. Ours under the Trainer with its default callbacks and checkpoints, "
        f"theirs in a bare loop: {said(ratios, 2)} times as quick; asked: 1.5.\n\n" + table(header, rows),
    )


if __name__ == "__main__":
    main()
