"""Inputs at which a loss may give no number: what ours and lightly's give."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.divergences.patches import patch_cross_entropy
from selfdistill.methods import MSN, Outputs
from selfdistill.networks import build_backbone
from selfdistill.regularizers import koleo
from selfdistill.targets import sinkhorn

Loss = Callable[[Tensor], Tensor]


def rows() -> list[list[str]]:
    """Name, ours, theirs."""
    from lightly.loss import IBOTPatchLoss, KoLeoLoss, MSNLoss
    from lightly.loss.swav_loss import sinkhorn as their_sinkhorn

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    cosines = F.normalize(drawn(64, 8), dim=1) @ F.normalize(drawn(30, 8), dim=1).T
    copies = drawn(3, 8).repeat(2, 1).half()
    zeros = torch.cat([torch.zeros(2, 8).half(), copies])
    anchors, target, prototypes = drawn(8, 16), drawn(4, 16), drawn(10, 16)
    unmasked, none = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(0, 32)

    def patches(student: Tensor) -> Tensor:
        row = torch.zeros(1, 32)  # our views give one row of weight 0 then
        return patch_cross_entropy(
            torch.cat([student, row]), row, torch.zeros(1), 2, student_temperature=0.1, teacher_temperature=0.07
        )

    method = MSN(build_backbone("small_vit"), hidden_dim=8, out_dim=16, prototypes=10, temperature=0.01)
    method.prototypes.weight.data.copy_(prototypes)

    def clusters(anchors: Tensor) -> Tensor:
        student = Outputs(anchors.unflatten(0, (2, 4)), anchors, ((0, 0), (1, 0)))
        return torch.stack(list(method.terms(student, Outputs(target[None], target)).values())).sum()

    cases: list[tuple[str, Tensor, Loss, Loss]] = [
        ("Sinkhorn of cosines, ε = 0.01", cosines, lambda x: sinkhorn(x, epsilon=0.01, iterations=3),
         lambda x: their_sinkhorn(x, iterations=3, epsilon=0.01)),
        ("Sinkhorn of scores about −10, ε = 0.05", cosines - 10, lambda x: sinkhorn(x, epsilon=0.05, iterations=3),
         lambda x: their_sinkhorn(x, iterations=3, epsilon=0.05)),
        ("KoLeo of copies, float16", copies, koleo, KoLeoLoss()),
        ("KoLeo with rows of zeros, float16", zeros, koleo, KoLeoLoss()),
        ("iBOT patch loss where nothing is masked", none, patches, lambda x: IBOTPatchLoss(32)(none, x, unmasked)),
        ("MSN loss, temperature 0.01", anchors, clusters, lambda x: MSNLoss(0.01)(x, target, prototypes)),
    ]  # fmt: skip
    return [[name, outcome(ours, x), outcome(theirs, x)] for name, x, ours, theirs in cases]


def outcome(loss: Loss, given: Tensor) -> str:
    """Whether value and gradient are numbers."""
    leaf = given.clone().requires_grad_()
    try:
        value = loss(leaf)
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).split('.')[0]}"
    if not value.isfinite().all():
        return "not finite"
    if value.requires_grad:
        value.sum().backward()
        if leaf.grad is not None and not leaf.grad.isfinite().all():
            return "gradient not finite"
    return "finite"
