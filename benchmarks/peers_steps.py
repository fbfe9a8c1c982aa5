"""Whole training steps: our method in a bare loop beside the same method written on lightly's parts.

Theirs is written as their own examples are: heads and losses of lightly, networks of timm, views one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import timm
import torch
from bare import BareStep
from measure import Pair, Row
from torch import Tensor, nn

from selfdistill.heads import MLP, ClassPatchHead, DINOHead
from selfdistill.methods import BYOL, DINO, IBOT, DINOv2, MoCo, SelfDistillModule
from selfdistill.optim import OptimizerRecipe
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views
from selfdistill.views.masks import BlockMask, draw_masks

BOTH, STUDENT, TEACHER = frozenset({"student", "teacher"}), frozenset({"student"}), frozenset({"teacher"})
MOMENTUM = 0.99


def crops(batch: int, *sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, size, size, generator=generator) for size in sizes]


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give their head the weights of ours; scales of weight norm, all 1, are theirs alone."""
    wanted = [p for p in theirs.parameters() if p.ndim < 2 or p.shape[1] > 1]
    for mine, other in zip(ours.parameters(), wanted, strict=True):
        other.data.copy_(mine.data)


class Theirs:
    """The loop of lightly's examples, which moves the teacher before a step."""

    def __init__(
        self,
        students: Iterable[nn.Module],
        optimizer: Callable[..., torch.optim.Optimizer],
        teachers: Iterable[nn.Module] = (),
    ) -> None:
        self.students = list(students)
        self.teachers = list(teachers) or [copy.deepcopy(network) for network in self.students]
        for network in self.teachers:
            network.requires_grad_(False)
        self.optimizer = optimizer([p for network in self.students for p in network.parameters() if p.requires_grad])

    def move(self, followed: int = 2) -> None:
        from lightly.models.utils import update_momentum

        for student, teacher in zip(self.students[:followed], self.teachers[:followed], strict=True):
            update_momentum(student, teacher, MOMENTUM)

    def step(self, loss: Tensor) -> Tensor:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def ours(module: SelfDistillModule[Any, Any], name: Literal["adamw", "sgd"]) -> BareStep:
    """With the optimizer that the module would build for a Trainer."""
    recipe = OptimizerRecipe(name, 1e-5 if name == "adamw" else 1e-3, weight_decay=0.01 if name == "adamw" else 0.0)
    return BareStep(module, recipe.build(module.trained_parameters(), fused=True), MOMENTUM)


def vit() -> nn.Module:
    network: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True)
    return network


def with_dino_head(backbone: nn.Module, ours: DINOHead) -> Theirs:
    from lightly.models.modules.heads import DINOProjectionHead

    # a module with torch's weight norm cannot be copied
    student, teacher = (DINOProjectionHead(192, 2048, 256, ours.out_dim) for _ in range(2))
    for head in (student, teacher):
        same_weights(ours, head)
    return Theirs([backbone, student], adamw, [copy.deepcopy(backbone), teacher])


def dino(batch: int = 8, prototypes: int = 65536, *, logits: Literal["whole", "chunks"]) -> Pair:
    from lightly.loss import DINOLoss

    backbone = vit()
    module = DINO(copy.deepcopy(backbone), prototypes=prototypes, teacher_temperature=0.04, logits=logits)
    views = Views(crops(batch, 224, 224, *[96] * 8), (BOTH, BOTH, *[STUDENT] * 8))
    mine = ours(module, "adamw")
    their = with_dino_head(backbone, cast(DINOHead, module.student.head))
    criterion = DINOLoss(prototypes, teacher_temp=0.04)

    def theirs() -> Tensor:
        their.move()
        with torch.no_grad():
            wanted = [their.teachers[1](their.teachers[0](crop)) for crop in views.crops[:2]]
        given = [their.students[1](their.students[0](crop)) for crop in views.crops]
        return their.step(criterion(wanted, given))

    return Pair(lambda: mine(views), theirs, 1e-3)


def ibot(batch: int = 8, prototypes: int = 8192, *, centre_all: bool) -> Pair:
    from lightly.loss import DINOLoss, IBOTPatchLoss
    from lightly.models.modules import MaskedVisionTransformerTIMM

    backbone = vit()
    module: SelfDistillModule[Any, Any]
    if centre_all:
        # both centers stand still: ours is the mean of all patches, as the paper's, theirs that of the masked ones
        module = IBOT(
            copy.deepcopy(backbone), prototypes=prototypes, teacher_temperature=0.04, patch_temperature=0.04,
            center_momentum=1.0,
        )  # fmt: skip
    else:
        module = DINOv2(
            copy.deepcopy(backbone), prototypes=prototypes, teacher_temperature=0.04, norm_last_layer=True,
            weights={"koleo": 0.0}, teacher=TeacherPolicy.ema(MOMENTUM, mode="train"),
        )  # fmt: skip
    masks = draw_masks(BlockMask((14, 14), stratified=False), torch.arange(batch), 2, seed=0, epoch=0)
    views = Views(crops(batch, 224, 224, *[96] * 8), (BOTH, BOTH, *[STUDENT] * 8), masks=masks)
    mine = ours(module, "adamw")
    masked = MaskedVisionTransformerTIMM(vit=backbone, weight_initialization="skip", pos_embed_initialization="skip")
    their = with_dino_head(masked, cast(DINOHead, cast(ClassPatchHead, module.student.head).head))
    momentum = 1.0 if centre_all else 0.9
    cls = DINOLoss(prototypes, teacher_temp=0.04, center_momentum=momentum)
    patch = IBOTPatchLoss(prototypes, teacher_temp=0.04, center_momentum=momentum)
    large, small = torch.cat(views.crops[:2]), torch.cat(views.crops[2:])
    grid = masks["mask"].flatten(0, 1)
    tokens = torch.cat([torch.zeros(len(grid), 1, dtype=torch.bool), grid], dim=1)

    def theirs() -> Tensor:
        their.move()
        with torch.no_grad():
            seen = their.teachers[0].encode(large)
            wanted, wanted_patches = their.teachers[1](seen[:, 0]), their.teachers[1](seen[tokens])
        hidden = their.students[0].encode(large, mask=tokens)
        given, given_patches = their.students[1](hidden[:, 0]), their.students[1](hidden[tokens])
        local = their.students[1](their.students[0].encode(small)[:, 0])
        loss = cls(list(wanted.chunk(2)), [*given.chunk(2), *local.chunk(8)])
        return their.step(loss + patch(wanted_patches, given_patches, grid.view(-1, 14, 14)))

    return Pair(lambda: mine(views), theirs, 1e-3)


def moco(batch: int = 32, *, channels_last: bool = False) -> Pair:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import MoCoProjectionHead

    backbone = timm.create_model("resnet18", num_classes=0)
    module = MoCo(copy.deepcopy(backbone))
    if channels_last:
        module.to(memory_format=torch.channels_last)
    views = Views(crops(batch, 64, 64), (STUDENT, TEACHER))
    mine = ours(module, "sgd")
    head = MoCoProjectionHead(512, 2048, 128)
    assert isinstance(module.student.head, MLP)
    same_weights(module.student.head, head)
    their = Theirs([backbone, head], sgd)
    criterion = NTXentLoss(0.2, memory_bank_size=(65536, 128))
    criterion.memory_bank.bank.copy_(module.queue())

    def theirs() -> Tensor:
        their.move()
        query = their.students[1](their.students[0](views.crops[0]))
        with torch.no_grad():
            key = their.teachers[1](their.teachers[0](views.crops[1]))
        return their.step(criterion(query, key))

    return Pair(lambda: mine(views), theirs, 1e-3)


def byol(batch: int = 32, *, compiled: bool = False) -> Pair:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

    backbone = timm.create_model("resnet18", num_classes=0)
    module = BYOL(copy.deepcopy(backbone), teacher=TeacherPolicy.ema(MOMENTUM, mode="train"))
    if compiled:
        for tower in (module.student, module.teacher):
            tower.compile()
    views = Views(crops(batch, 32, 32), (BOTH, BOTH))
    mine = ours(module, "sgd")
    their = Theirs([backbone, BYOLProjectionHead(512, 4096, 256), BYOLPredictionHead(256, 4096, 256)], sgd)
    criterion = NegativeCosineSimilarity()

    def loop() -> None:
        mine(views)

    def theirs() -> None:
        their.move()
        given = [their.students[2](their.students[1](their.students[0](crop))) for crop in views.crops]
        with torch.no_grad():
            wanted = [their.teachers[1](their.teachers[0](crop)) for crop in views.crops]
        their.step((criterion(given[0], wanted[1]) + criterion(given[1], wanted[0])) / 2)

    return Pair(loop, theirs)


ROWS = [
    Row("DINO, ViT-Tiny/16, 2 × 224 + 8 × 96, K = 65,536, B = 8", 1.5, lambda: dino(logits="whole"), 7, True, False),
    Row("the same, `method.logits=chunks`", 1.5, lambda: dino(logits="chunks"), 7, True, False),
    Row("iBOT, ViT-Tiny/16, 2 × 224 + 8 × 96, K = 8,192, B = 8 (ours centers all patches, as the paper)", 1.4,
        lambda: ibot(centre_all=True), 7, True, False),
    Row("the same, both centering masked patches (our `DINOv2` without KoLeo)", 1.4,
        lambda: ibot(centre_all=False), 7, True, False),
    Row("MoCo v2, ResNet-18 at 64 px, K = 65,536, B = 32", 1.1, moco, repeats=9, peaks=True),
    Row("the same, `channels_last=true`", 1.1, lambda: moco(channels_last=True), repeats=9),
    Row("BYOL, ResNet-18 at 32 px, B = 32 (not the same value: batch norm sees both views)", 1.0, byol, repeats=9),
    Row("the same, `compile=true`", 1.1, lambda: byol(compiled=True), 9, False, False),
]  # fmt: skip
