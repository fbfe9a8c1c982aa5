"""What ``gpu.py`` sets beside a job's bare step: the same step on lightly's parts, and a Trainer's callbacks."""

from __future__ import annotations

import copy
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from peers_steps import Theirs, adamw
from peers_views import Pictures
from torch import Tensor, nn

from selfdistill.callbacks import CollapseMonitor
from selfdistill.heads import DINOHead
from selfdistill.methods import BYOL, DINO, DINOv2, SelfDistillModule
from selfdistill.networks.timm_backbones import TimmBackbone, TimmViT
from selfdistill.optim import OptimizerRecipe
from selfdistill.views import Views

Module = SelfDistillModule[Any, Any]
Step = Callable[[Views], Tensor]
HAS_PEER = importlib.util.find_spec("lightly") is not None


def peer_step(module: Module, device: torch.device, *, bf16: bool) -> Step | None:
    """The step of ``module`` written as lightly's examples are, from a copy of its network; None without lightly."""
    if not HAS_PEER:
        return None
    build = {BYOL: _byol, DINO: _dino, DINOv2: _dinov2}[type(module)]
    backbone = module.student.backbone
    assert isinstance(backbone, TimmBackbone | TimmViT)
    step = build(module, copy.deepcopy(backbone.model), device)

    def with_autocast(views: Views) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return step(views)

    return with_autocast


def _theirs(networks: list[nn.Module], teachers: list[nn.Module], device: torch.device) -> Theirs:
    for network in (*networks, *teachers):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Theirs(networks, adamw, teachers)


def _byol(module: Module, backbone: nn.Module, device: torch.device) -> Step:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

    dim = module.student.backbone.dim
    networks = [backbone, BYOLProjectionHead(dim, 4096, 256), BYOLPredictionHead(256, 4096, 256)]
    their = _theirs(networks, [], device)
    criterion = NegativeCosineSimilarity()

    def step(views: Views) -> Tensor:
        their.move()
        given = [their.students[2](their.students[1](their.students[0](crop))) for crop in views.crops]
        with torch.no_grad():
            wanted = [their.teachers[1](their.teachers[0](crop)) for crop in views.crops]
        return their.step((criterion(given[0], wanted[1]) + criterion(given[1], wanted[0])) / 2)

    return step


def _with_heads(backbone: nn.Module, module: Module, device: torch.device) -> Theirs:
    from lightly.models.modules.heads import DINOProjectionHead

    # a module with torch's weight norm cannot be copied
    heads = [DINOProjectionHead(module.student.backbone.dim, 2048, 256, _prototypes(module)) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    return _theirs([backbone, heads[0]], [copy.deepcopy(backbone), heads[1]], device)


def _dino(module: Module, backbone: nn.Module, device: torch.device) -> Step:
    from lightly.loss import DINOLoss

    their = _with_heads(backbone, module, device)
    criterion = DINOLoss(_prototypes(module)).to(device)

    def step(views: Views) -> Tensor:
        their.move()
        with torch.no_grad():
            wanted = [their.teachers[1](their.teachers[0](crop)) for crop in views.crops[:2]]
        given = [their.students[1](their.students[0](crop)) for crop in views.crops]
        return their.step(criterion(wanted, given))

    return step


def _dinov2(module: Module, backbone: nn.Module, device: torch.device) -> Step:
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.modules import MaskedVisionTransformerTIMM

    masked = MaskedVisionTransformerTIMM(vit=backbone, weight_initialization="skip", pos_embed_initialization="skip")
    their = _with_heads(masked, module, device)
    cls = DINOLoss(_prototypes(module)).to(device)
    patch = IBOTPatchLoss(_prototypes(module)).to(device)
    koleo = KoLeoLoss()

    def step(views: Views) -> Tensor:
        their.move()
        large, small = torch.cat(views.crops[:2]), torch.cat(views.crops[2:])
        grid = views.mask("mask").flatten(0, 1)
        tokens = torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)
        with torch.no_grad():
            seen = their.teachers[0].encode(large)
            wanted, wanted_patches = their.teachers[1](seen[:, 0]), their.teachers[1](seen[tokens])
        hidden = their.students[0].encode(large, mask=tokens)
        given, given_patches = their.students[1](hidden[:, 0]), their.students[1](hidden[tokens])
        local = their.students[1](their.students[0].encode(small)[:, 0])
        loss = cls(list(wanted.chunk(2)), [*given.chunk(2), *local.chunk(len(views.crops) - 2)])
        side = round(grid.shape[1] ** 0.5)
        loss = loss + patch(wanted_patches, given_patches, grid.view(-1, side, side))
        return their.step(loss + 0.1 * sum(koleo(part) for part in hidden[:, 0].chunk(2)))

    return step


def _prototypes(module: Module) -> int:
    return next(part.out_dim for part in module.student.head.modules() if isinstance(part, DINOHead))


def peer_views(images: Tensor, device: torch.device, workers: int) -> Iterator[Views]:
    """Their two views of stored 32-pixel images ``[B, 3, 32, 32]``, made by workers ahead of the step, for ever."""
    from lightly.transforms import BYOLTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    transform = BYOLTransform(BYOLView1Transform(input_size=32), BYOLView2Transform(input_size=32))
    both = frozenset({"student", "teacher"})
    pictures = Pictures(images, transform)
    # one epoch of very many batches: all workers have work at all times
    sampler = torch.utils.data.RandomSampler(pictures, replacement=True, num_samples=len(images) * 100_000)
    loader = torch.utils.data.DataLoader(
        pictures, len(images), sampler=sampler, num_workers=workers, pin_memory=device.type == "cuda"
    )
    for crops, _ in loader:
        yield Views([crop.to(device, non_blocking=True) for crop in crops], (both, both))


class _Clock(L.Callback):
    """Seconds of the steps but the first three."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.start, self.seconds = device, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            self.start = self._now()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = self._now() - self.start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def callbacks_share(
    build: Callable[[], Module], views: Views, device: torch.device, *, bf16: bool, steps: int
) -> float:
    """Share of a Trainer's time that the collapse monitor adds, the median of three, in turn.

    It looks at every twentieth step; without it there is the teacher's update alone.
    """

    def seconds(*callbacks: L.Callback) -> float:
        module = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module.optimizer_recipe = OptimizerRecipe("adamw", 1e-4)
        clock, count = _Clock(device), steps + 3
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False,
                precision="bf16-mixed" if bf16 else "32-true", enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, max_steps=count, max_epochs=-1, default_root_dir=folder,
                callbacks=[*callbacks, clock],
            )  # fmt: skip
            trainer.fit(module, torch.utils.data.DataLoader([views] * count, batch_size=None))
        return clock.seconds

    return statistics.median(1 - seconds() / seconds(CollapseMonitor()) for _ in range(3))
