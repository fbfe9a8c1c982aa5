"""MSN against the paper's formulas, written out as its authors do: powers of probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfdistill.methods import MSN, Outputs
from selfdistill.networks import SmallCNN
from selfdistill.schedules import Clock
from selfdistill.views import Views
from selfdistill.views.masks import RandomMask

B, P, K = 5, 4, 6
STUDENT, TEACHER = frozenset({"student"}), frozenset({"teacher"})
# one random view and two focal ones, all against the one target
PAIRS = ((0, 0), (1, 0), (2, 0))


def vit() -> VisionTransformer:
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
    )


def module(**settings: Any) -> MSN:
    torch.manual_seed(0)
    arguments = {"hidden_dim": 8, "out_dim": P, "prototypes": K, **settings}
    return MSN(vit(), **arguments)


def views() -> Views:
    """The target, a random view with a quarter of its 16 patches dropped, two focal views."""
    torch.manual_seed(1)
    crops = [torch.randn(B, 1, size, size) for size in (8, 8, 4, 4)]
    masks = RandomMask((4, 4), 0.25)(B, torch.Generator().manual_seed(0))
    return Views(crops, (TEACHER, STUDENT, STUDENT, STUDENT), masks=masks)


def outputs() -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    z = torch.randn(3, B, P, requires_grad=True)
    h = torch.randn(1, B, P, requires_grad=True)
    return Outputs(z, torch.zeros(3, B, 8), PAIRS), Outputs(h, torch.zeros(1, B, 8))


def probabilities(x: Tensor, c: Tensor) -> list[Tensor]:
    """softmax(cos(x, C)/.1), one scalar tensor a prototype."""
    e = [((x @ row) / (x.norm() * row.norm()) / 0.1).exp() for row in c]
    return [v / sum(e) for v in e]


def paper(z: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    z, h, c = z.double(), h.double(), c.double()
    q = []
    for row in h[0]:
        sharp = [p.item() ** 4 for p in probabilities(row, c)]
        q.append([p / sum(sharp) for p in sharp])
    for _ in range(3):
        for k in range(K):
            mass = sum(row[k] for row in q)
            for row in q:
                row[k] *= B / K / mass
        q = [[p / sum(row) for p in row] for row in q]

    p = [[probabilities(z[v, b], c) for b in range(B)] for v in range(3)]
    cluster = sum(-q[b][k] * p[v][b][k].log() for v in range(3) for b in range(B) for k in range(K)) / (3 * B)
    mean = [sum(p[v][b][k] for v in range(3) for b in range(B)) / (3 * B) for k in range(K)]
    return cluster, math.log(K) + sum(m * m.log() for m in mean)


@pytest.mark.parametrize("term", ["cluster", "me_max"])
def test_value_and_gradient_are_the_papers(term: str) -> None:
    """The reference's targets are plain numbers: equal gradients of C show the stop-gradient."""
    msn, (predictions, targets) = module(), outputs()
    z, h, c = predictions.projections, targets.projections, msn.prototypes.weight
    value = msn.terms(predictions, targets)[term]
    value.backward()
    found = z.grad, c.grad
    z.grad = c.grad = None
    expected = paper(z, h.detach(), c)[0 if term == "cluster" else 1]
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(found[0], z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], c.grad, rtol=1e-4, atol=1e-6)
    assert h.grad is None


def test_both_terms_count_fully() -> None:
    msn, (predictions, targets) = module(), outputs()
    assert list(msn.terms(predictions, targets)) == ["cluster", "me_max"]
    assert msn.weights == {}
    assert list(module(weights={"me_max": 2.0}).weights) == ["me_max"]


def test_dropped_patches_are_not_seen() -> None:
    msn, batch = module().eval(), views()
    before = msn.predictions(batch).projections
    assert before.shape == (3, B, P)
    for patch, seen in ((batch.masks["keep"][:, 0], True), (batch.masks["mask"].float().argmax(1), False)):
        random = batch.crops[1].clone()
        for b, i in enumerate(patch.tolist()):
            random[b, :, i // 4 * 2 : i // 4 * 2 + 2, i % 4 * 2 : i % 4 * 2 + 2] += 1
        crops = [batch.crops[0], random, *batch.crops[2:]]
        after = msn.predictions(Views(crops, batch.roles, masks=batch.masks)).projections
        assert torch.equal(after[0], before[0]) is not seen
        assert torch.equal(after[1:], before[1:])


def test_views_come_in_order_and_the_target_whole() -> None:
    msn, batch = module().eval(), views()
    predictions, targets = msn.predictions(batch), msn.targets(batch)
    assert predictions.pairs == PAIRS
    assert predictions.features.shape == (3, B, 8)
    for slot, crop in ((1, 2), (2, 3)):
        torch.testing.assert_close(predictions.projections[slot], msn.student(batch.crops[crop])[1])
    assert msn.teacher is not None
    torch.testing.assert_close(targets.projections[0], msn.teacher(batch.crops[0])[1])


def test_the_head_takes_each_resolutions_own_batch_statistics() -> None:
    """As the authors' network, which runs its head once a resolution."""
    msn, batch = module(), views()
    focal = msn.predictions(batch).projections[1:]
    torch.testing.assert_close(focal, msn.student(batch.crops[2:])[1])


def test_without_focal_views() -> None:
    msn, batch = module(), views()
    alone = Views(batch.crops[:2], batch.roles[:2], masks=batch.masks)
    predictions = msn.predictions(alone)
    assert predictions.pairs == ((0, 0),)
    assert torch.isfinite(msn.terms(predictions, msn.targets(alone))["cluster"])


def test_several_random_views_have_kept_patches_of_their_own() -> None:
    msn, batch = module().eval(), views()
    keep = torch.cat([batch.masks["keep"], batch.masks["keep"].flip(0)])
    two = Views([*batch.crops[:2], batch.crops[0]], (TEACHER, STUDENT, STUDENT), masks={"keep": keep})
    projections = msn.predictions(two).projections
    torch.testing.assert_close(projections[0], msn.predictions(batch).projections[0])
    torch.testing.assert_close(projections[1], msn.student(batch.crops[0], keep=keep[B:])[1])


def test_gradients_reach_student_and_prototypes_only() -> None:
    msn, batch = module(), views()
    with torch.no_grad():
        targets = msn.targets(batch)
    sum(msn.terms(msn.predictions(batch), targets).values(), torch.zeros(())).backward()
    for name, parameter in msn.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name


def test_the_teacher_has_batch_statistics_and_is_evaluated() -> None:
    msn = module()
    assert msn.teacher_policy.mode == "train"
    assert msn.teacher_policy.buffer_rule == "own"
    assert msn.evaluated_tower is msn.teacher
    schedule = msn.teacher_policy.schedule
    # .996 + .004·k/(1.25·K)
    assert [schedule(Clock(step, 100)) for step in (0, 50, 100)] == pytest.approx([0.996, 0.9976, 0.9992])


def test_prototypes_do_not_decay() -> None:
    msn = module()
    roles = msn.parameter_roles()
    assert roles == {"prototypes": [msn.prototypes.weight]}
    decayed = set()
    for group in msn.optimizer_recipe.build(msn.trained_parameters(), roles).param_groups:
        decayed |= {id(p) for p in group["params"] if group["weight_decay"]}
    expected = {id(p) for n, p in msn.student.named_parameters() if p.ndim > 1 and not n.endswith("bias")}
    assert decayed == expected


def test_half_precision_embeddings_give_a_float32_loss() -> None:
    msn, (predictions, targets) = module(), outputs()
    half = msn.terms(
        Outputs(predictions.projections.bfloat16(), predictions.features, PAIRS),
        Outputs(targets.projections.bfloat16(), targets.features),
    )
    for name, value in msn.terms(predictions, targets).items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(value.item(), rel=5e-2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"backbone: SmallCNN given to MSN.*patch tokens; choose a vision transformer"):
        MSN(SmallCNN(1))
    batch = views()
    with pytest.raises(ValueError, match=r"needs the masks 'keep'"):
        module().predictions(Views(batch.crops, batch.roles))
    with pytest.raises(ValueError, match=r"views: a random view after a focal one given"):
        module().predictions(Views([*batch.crops, batch.crops[1]], (*batch.roles, STUDENT), masks=batch.masks))
    with pytest.raises(ValueError, match=r"method.sharpen must be"):
        module(sharpen=0.0)
