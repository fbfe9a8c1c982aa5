"""Losses, targets and teacher updates of ours beside lightly's."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import Pair, Row
from torch import Tensor, nn

from selfdistill.divergences import fused_cross_entropy
from selfdistill.divergences.contrastive import info_nce_queue
from selfdistill.divergences.patches import patch_cross_entropy
from selfdistill.products import unit
from selfdistill.regularizers import koleo, me_max
from selfdistill.targets import Center, Queue, sinkhorn
from selfdistill.teacher import make_teacher
from selfdistill.teacher.ema import EMA

Loss = Callable[..., Tensor]


def ema(name: str) -> Pair:
    import timm
    from lightly.models.utils import update_momentum

    student: nn.Module = timm.create_model(name, num_classes=0)
    teachers = [make_teacher(student), make_teacher(student)]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    update = EMA(teachers[0], student, "own")
    last = [list(teacher.parameters())[-1] for teacher in teachers]

    def ours() -> Tensor:
        update.update(0.996)
        return last[0]

    def theirs() -> Tensor:
        update_momentum(student, teachers[1], 0.996)
        return last[1]

    return Pair(ours, theirs)


def with_gradient(loss: Loss, *inputs: Tensor) -> Callable[[], list[Tensor]]:
    """Forward and backward, as a step does them: value, gradient of the first input."""
    leaf = inputs[0].clone().requires_grad_()

    def run() -> list[Tensor]:
        leaf.grad = None
        value = loss(leaf, *inputs[1:])
        value.backward()
        assert leaf.grad is not None
        return [value, leaf.grad]

    return run


def dino_loss(batch: int = 16, prototypes: int = 65536) -> Pair:
    from lightly.loss import DINOLoss

    generator = torch.Generator().manual_seed(0)
    student = torch.randn(10, batch, prototypes, generator=generator) * 0.3
    teacher = torch.randn(2, batch, prototypes, generator=generator) * 0.1
    center, their = Center(prototypes), DINOLoss(prototypes, teacher_temp=0.04)

    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        loss = fused_cross_entropy(student, center(teacher), student_temperature=0.1, teacher_temperature=0.04)
        center.observe(teacher)
        center.commit()
        return loss

    def theirs(student: Tensor, teacher: Tensor) -> Tensor:
        return their(list(teacher), list(student))

    # their value is 2e-4 off that in float64, ours 3e-8
    return Pair(with_gradient(ours, student, teacher), with_gradient(theirs, student, teacher), 1e-3)


def sinkhorn_codes() -> Pair:
    from lightly.loss.swav_loss import sinkhorn as their

    scores = torch.randn(512, 3000, generator=torch.Generator().manual_seed(0)) * 0.1
    return Pair(lambda: sinkhorn(scores, epsilon=0.05, iterations=3), lambda: their(scores, iterations=3, epsilon=0.05))


def ibot_patch_loss() -> Pair:
    from lightly.loss import IBOTPatchLoss

    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(16, 14, 14, generator=generator) < 0.2
    count = int(mask.sum())
    student, teacher = (torch.randn(count, 8192, generator=generator) * 0.3 for _ in range(2))
    weight = (1 / mask.sum((1, 2)).clamp(min=1))[:, None, None].expand_as(mask)[mask]
    center, their = Center(8192), IBOTPatchLoss(8192, teacher_temp=0.07)

    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        loss = patch_cross_entropy(
            student, center(teacher), weight, len(mask), student_temperature=0.1, teacher_temperature=0.07
        )
        center.observe(teacher)
        center.commit()
        return loss

    def theirs(student: Tensor, teacher: Tensor) -> Tensor:
        return their(teacher, student, mask)

    return Pair(with_gradient(ours, student, teacher), with_gradient(theirs, student, teacher))


def koleo_loss() -> Pair:
    from lightly.loss import KoLeoLoss

    features = torch.randn(1024, 384, generator=torch.Generator().manual_seed(0))
    return Pair(with_gradient(koleo, features), with_gradient(KoLeoLoss(), features), 1e-3)


def msn_loss() -> Pair:
    from lightly.loss import MSNLoss

    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(11 * 128, 256, generator=generator)
    targets, prototypes = (torch.randn(size, 256, generator=generator) for size in (128, 1024))
    their = MSNLoss()

    def ours(anchors: Tensor, targets: Tensor, prototypes: Tensor) -> Tensor:
        rows = unit(prototypes)
        cosines = F.linear(unit(anchors), rows)
        with torch.no_grad():
            log_p = F.log_softmax(F.linear(unit(targets), rows) / (0.1 * 0.25), dim=1)
            codes = sinkhorn(log_p, epsilon=1.0, iterations=3)
        cluster = fused_cross_entropy(
            cosines.view(11, 128, -1), codes[None], student_temperature=0.1, teacher_temperature=None,
            pairs=[(v, 0) for v in range(11)],
        )  # fmt: skip
        return cluster + me_max(cosines, 0.1)

    return Pair(with_gradient(ours, anchors, targets, prototypes), with_gradient(their, anchors, targets, prototypes))


def moco_queue(length: int = 65536, batch: int = 32, dim: int = 128) -> Pair:
    from lightly.loss import NTXentLoss

    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(batch, dim, generator=generator) for _ in range(2))
    queue, their = Queue(length, dim), NTXentLoss(0.2, memory_bank_size=(length, dim))
    their.memory_bank.bank.copy_(queue())

    def ours(queries: Tensor, keys: Tensor) -> Tensor:
        key = unit(keys)
        loss = info_nce_queue(unit(queries), key, queue(), temperature=0.2).mean()
        queue.observe(key)
        return loss

    value = with_gradient(ours, queries, keys)

    def step() -> list[Tensor]:
        found = value()
        queue.commit()
        return found

    return Pair(step, with_gradient(their, queries, keys))


def knn() -> Pair:
    from knn import data, lightly, ours

    bank, labels, queries = data(1000, 512)

    def voted(side: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: side(bank, labels, queries, 1000, 200, 256)

    first, second = voted(ours), voted(lightly)
    agreement = (first() == second()).double().mean().item()
    if agreement < 0.999:
        raise SystemExit(f"k-NN: the answers agree on {agreement:.4f} of the queries only")
    return Pair(lambda: [torch.tensor(agreement), first()][:1], lambda: [torch.tensor(agreement), second()][:1])


ROWS = [
    Row("EMA update, ViT-S/16", 2.5, lambda: ema("vit_small_patch16_224"), repeats=31),
    Row("EMA update, ResNet-50", 2.5, lambda: ema("resnet50"), repeats=31),
    Row("DINO loss, forward and backward, K = 65,536, 2 + 8 crops, B = 16", 3.0, dino_loss, repeats=9, peaks=True),
    Row("Sinkhorn, 512 × 3,000, 3 iterations", 1.5, sinkhorn_codes, repeats=31),
    Row("iBOT patch loss, B = 16, a fifth of 196 patches, K = 8,192", 1.5, ibot_patch_loss, repeats=9, peaks=True),
    Row("KoLeo, 1,024 × 384", 1.5, koleo_loss, repeats=31),
    Row("MSN loss, 11 × 128 anchors, K = 1,024", 1.5, msn_loss, repeats=15, peaks=True),
    Row("MoCo queue step, K = 65,536, B = 32", 2.0, moco_queue, repeats=15, peaks=True),
    Row("k-NN prediction, bank 50,000 × 512, 1,000 classes, k = 200", 3.0, knn, repeats=7),
]
