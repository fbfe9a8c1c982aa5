"""Short fits of methods under Lightning's own DDP, recorded; run as a script this file is one rank.

Everything is in float64, so that equality is told from rounding even behind AdamW. Each rank takes its share of the
same global batches. Batch norms are converted as ``trainer.sync_batchnorm=true`` converts them; the GPU kernel of
``SyncBatchNorm`` has a stand-in here, made of differentiable sums over all ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from selfdistill.assembly import build_data, build_method, set_execution
from selfdistill.batch_norm_sync import BatchNormSync
from selfdistill.config import CONF, check
from selfdistill.data import DataModule
from selfdistill.distributed import rank, world_size
from selfdistill.methods.accumulation import images_of_all
from selfdistill.schedules import Schedule
from selfdistill.sharded_strategy import ShardedStrategy
from selfdistill.sharding import local
from selfdistill.teacher import TeacherUpdate
from selfdistill.views import Views

SIZES = (16, 16, 11)
"""Images of the global batches of an epoch: the last one is smaller, and its shares are not equal."""
EPOCHS = 2
COMMON = ("optimizer.warmup=1 steps", "optimizer.weight_decay=0.1")
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@dataclass(frozen=True)
class Case:
    """A configuration, and what the ranks make of a step that one process takes whole.

    Attributes:
        overrides: the configuration.
        accumulate: micro-batches a step.
        exact: images that networks see at a time, as under ``accumulate=exact``.
    """

    overrides: tuple[str, ...]
    accumulate: int = 1
    exact: int | None = None


CASES: dict[str, Case] = {method: Case((f"method={method}",)) for method in METHODS}
for method in ("ema_teacher", "multi_head"):
    # the bias of the last batch norm has no gradient but rounding, of which AdamW makes steps
    CASES[method] = Case((f"method={method}", "optimizer=sgd", "optimizer.lr=0.03"))
CASES["swav_like_queue"] = Case(("method=swav_like", "method.queue_length=24", "method.queue_start=0"))
CASES["dino_like_sinkhorn"] = Case(("method=dino_like", "method.centering=sinkhorn"))
for objective in ("clustering", "contrastive", "koleo", "me_max", "supervised", "variance_covariance"):
    CASES[f"byol_like_{objective}"] = Case(("method=byol_like", f"objective={objective}"))
for objective in ("masked_pixels", "masked_tokens"):
    CASES[f"ibot_like_{objective}"] = Case(("method=ibot_like", f"objective={objective}"))
# means over samples, and no batch norm: what DESIGN rule 4 calls exact
for method, more in (("dino_like", ("method.head_norm=null",)), ("moco_like", ())):
    CASES[f"{method}_accumulated"] = Case((f"method={method}", "backbone=small_vit", *more), accumulate=2)
    CASES[f"{method}_exact"] = Case((f"method={method}", "backbone=small_vit", *more), exact=3)
# the optimizers that AdamW is not
CASES["byol_like_lars"] = Case(("method=byol_like", "optimizer=lars", "optimizer.lr=0.3", "optimizer.scaling=linear"))


OVER_RANKS = ("supervised", "masked_pixels", "masked_tokens")


def whole_batch_norm(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """In the place of torch's ``SyncBatchNorm.forward``, which takes tensors on GPUs only."""
    if not self.training:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    dims = [dim for dim in range(x.ndim) if dim != 1]
    count = x.new_full(x.shape[1:2], x.numel() / x.shape[1])
    sums = all_reduce(torch.stack([x.sum(dims), x.square().sum(dims), count]))
    mean, square = sums[:2] / sums[2]
    variance = square - mean.square()
    with torch.no_grad():
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * sums[2] / (sums[2] - 1), self.momentum)
        self.num_batches_tracked += 1
    shape = [1, -1, *[1] * (x.ndim - 2)]
    normal = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
    if self.weight is not None:
        normal = normal * self.weight.view(shape) + self.bias.view(shape)
    return normal.to(given)


def cut(views: Views, rows: slice) -> Views:
    """Those images, with their masks."""
    images = views.batch_size
    masks = {}
    for name, mask in views.masks.items():
        if name == "mask":
            mine = masks[name] = mask[:, rows]
            positions = mine.flatten().nonzero()[:, 0]
            weight = (1 / mine.sum(-1, keepdim=True)).expand(mine.shape).flatten()[positions]
            if not len(positions):
                positions, weight = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
            masks["masked"], masks["masked_weight"] = positions, weight.float()
        elif not name.startswith("masked"):
            masks[name] = mask.unflatten(0, (-1, images))[:, rows].flatten(0, 1)
    assert views.index is not None
    labels = None if views.labels is None else views.labels[rows]
    return Views([crop[rows] for crop in views.crops], views.roles, masks, labels, views.index[rows])


def bounds(images: int, part: int, parts: int) -> slice:
    """The rows of one of shares that differ by one image at most."""
    return slice(part * images // parts, (part + 1) * images // parts)


def share(views: Views, part: int, parts: int) -> Views:
    return cut(views, bounds(views.batch_size, part, parts))


class Batches:
    """This rank's batches of an epoch; it says how large they are, as loaders and their samplers do."""

    def __init__(self, whole: list[Views], micro: int) -> None:
        self.whole = whole
        self.micro = micro
        self.batch_size = SIZES[0] // micro // world_size()
        self.sampler = self

    def images_of_all(self, batch: int) -> int:
        rows = bounds(SIZES[batch // self.micro], batch % self.micro, self.micro)
        return rows.stop - rows.start

    def __len__(self) -> int:
        return len(self.whole) * self.micro

    def __iter__(self) -> Iterator[Views]:
        for views in self.whole:
            for part in range(self.micro):
                yield share(share(views, part, self.micro), rank(), world_size())


class Loaded(L.LightningDataModule):
    """Made when the processes know of each other."""

    def __init__(self, whole: list[Views], micro: int) -> None:
        super().__init__()
        self.whole, self.micro = whole, micro

    def train_dataloader(self) -> Any:
        return Batches(self.whole, self.micro)


def own_loader(config: Any, devices: int) -> DataModule:
    """The run's own batches, of which each process takes its share by itself."""
    config.data.batch_size = SIZES[0] // devices
    data = build_data(config)
    made = data.on_after_batch_transfer

    def doubled(batch: Any, dataloader_idx: int) -> Any:
        views = made(batch, dataloader_idx)
        views.crops = [crop.double() for crop in views.crops]
        return views

    data.on_after_batch_transfer = doubled  # type: ignore[method-assign]
    return data


class Record(L.Callback):
    """By step: loss, rates, momentum, temperatures, gradients; the sum over ranks counts where the name says so."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        step = pl_module.clock.step
        rates = {p: [g["lr"], g.get("weight_decay", 0.0)] for g in optimizer.param_groups for p in g["params"]}
        self.values[f"rates {step}"] = torch.tensor([rates[p] for _, p in pl_module.trained_parameters()])
        for name, value in vars(pl_module).items():
            if isinstance(value, Schedule):
                self.values[f"{name} {step}"] = torch.tensor(value(pl_module.clock))
        if step < 2:
            for name, parameter in pl_module.trained_parameters():
                assert parameter.grad is not None, name
                self.values[f"gradient {step} {name}"] = full(parameter.grad).clone()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Views, batch_idx: int
    ) -> None:
        for name, term in outputs["terms"].items():
            images: float = batch.batch_size
            if name in OVER_RANKS:  # means over what is labelled or masked on all ranks, which the ranks' average to
                images = images_of_all(trainer, batch_idx, batch.batch_size) / world_size()
            key = f"sum term {name} {pl_module.clock.step}"
            self.values[key] = self.values.get(key, 0) + term * images
        update = next(c for c in trainer.callbacks if isinstance(c, TeacherUpdate))  # type: ignore[attr-defined]
        if update.momentum is not None:
            self.values[f"momentum {pl_module.clock.step}"] = torch.tensor(update.momentum)


def compose(case: Case, settings: tuple[str, ...] = ()) -> Any:
    config = check("train", [*case.overrides, *COMMON, *settings, f"data.batch_size={SIZES[0]}"]).config
    config.run_dir = "unused"
    return config


def global_batches(name: str) -> list[Views]:
    """The first images of an epoch as one process sees them: to be called before there is a process group."""
    config = compose(CASES[name])
    datamodule = build_data(config)
    loader = iter(datamodule.train_dataloader())
    whole = [datamodule.on_after_batch_transfer(next(loader), 0) for _ in SIZES]
    for views in whole:
        views.crops = [crop.double() for crop in views.crops]
    return [cut(views, slice(size)) for views, size in zip(whole, SIZES, strict=True)]


KINDS: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "sharded": (),
    "resumed": (),
    "recomputed": ("trainer.activation_checkpointing=true",),
    "compiled": ("compile=true",),
    "half": ("trainer.precision=bf16-mixed",),
    "loaded": (f"data.limit={sum(SIZES)}", "data.drop_last=false"),
}
"""What the processes do, all but `ddp` and `loaded` with shards, and what they set in addition."""


class Save(L.Callback):
    """Writes a checkpoint at the end of the first epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def fit(
    name: str,
    devices: int,
    whole: list[Views],
    *,
    kind: str = "ddp",
    save: Path | None = None,
    resume: Path | None = None,
) -> dict[str, Tensor]:
    """What a run of a case leaves: the recorded steps, then the module's state, named ``state …``."""
    case = CASES[name]
    config = compose(case, KINDS[kind])
    L.seed_everything(config.seed, verbose=False)
    module = build_method(config)
    if kind != "half":
        module.double()
    set_execution(config, module)
    micro = case.accumulate if devices > 1 else 1
    module.micro_batch_size = case.exact if devices > 1 else None
    record = Record()
    strategy = "auto" if devices == 1 else "ddp" if kind in ("ddp", "loaded") else ShardedStrategy()
    data = own_loader(config, devices) if kind == "loaded" else Loaded(whole, micro)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, precision=config.trainer.precision,
        max_epochs=EPOCHS, accumulate_grad_batches=micro, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
        callbacks=[record, TeacherUpdate(), *([] if save is None else [Save(save)])],
        sync_batchnorm=devices > 1, plugins=[BatchNormSync()] if devices > 1 else None,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=resume and True)
    assert module.clock.step == EPOCHS * len(SIZES)
    for tower in (module.student, module.teacher) if isinstance(strategy, ShardedStrategy) and devices > 1 else ():
        if tower is not None:
            parameters = list(tower.parameters())
            assert all(isinstance(p, DTensor) for p in parameters)
            # whole rows: some ranks have none of a short one
            assert sum(local(p).numel() for p in parameters) < 1.5 * sum(p.numel() for p in parameters) / devices
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
    values = dict(record.values)
    for key, value in module.state_dict().items():
        values[f"state {key}"] = full(value) if isinstance(value, Tensor) else torch.tensor(list(value.values()))
    return values


def main(folder: Path, devices: int, kind: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    nn.SyncBatchNorm.forward = whole_batch_norm  # type: ignore[method-assign]
    # DistributedDataParallel's own refusal of it on CPUs
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # type: ignore[method-assign]
    batches = {name: global_batches(name) for name in names}
    for name, whole in batches.items():
        if kind == "half":
            for views in whole:
                views.crops = [crop.float() for crop in views.crops]
        checkpoint = folder / f"{name}.ckpt" if kind == "resumed" else None
        values = fit(name, devices, whole, kind=kind, save=checkpoint)
        if checkpoint is not None:
            values = fit(name, devices, whole, kind=kind, resume=checkpoint)
        torch.save(values, folder / f"{name}.{rank()}.pt")
    if kind == "compiled":
        counted: Any = torch._dynamo.utils.counters
        assert counted["stats"]["unique_graphs"] > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
