"""MultiHead: one head is EMATeacher, several are the weighted sum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainers import bare_trainer

from selfdistill.divergences import KL, Cosine
from selfdistill.methods import EMATeacher, MultiHead, Outputs, SelfDistillModule
from selfdistill.methods.multi_head import Head, HeadOutputs
from selfdistill.networks import ModuleBackbone, SmallCNN
from selfdistill.schedules import LinearSchedule
from selfdistill.teacher import TeacherPolicy
from selfdistill.views import Views

B = 5
BOTH, STUDENT = frozenset({"teacher", "student"}), frozenset({"student"})
PAIRS = ((0, 1), (1, 0), (2, 0), (2, 1))


def cnn() -> SmallCNN:
    return SmallCNN(1, (4, 4, 4, 6))


def module(**settings: Any) -> MultiHead:
    torch.manual_seed(0)
    return MultiHead(cnn(), **{"hidden_dim": 8, "out_dim": 5, **settings})


def views(local: int = 8) -> Views:
    return Views([torch.randn(B, 1, size, size) for size in (8, 8, local)], (BOTH, BOTH, STUDENT))


class Losses(L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.terms: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.terms.append(outputs["terms"])


def train(method: SelfDistillModule[Any, Any], folder: Path, steps: int = 4) -> Losses:
    torch.manual_seed(2)
    batches: Any = [views() for _ in range(steps)]
    record = Losses()
    bare_trainer(folder, record, max_epochs=1).fit(method, DataLoader(batches, batch_size=None))
    return record


@pytest.mark.parametrize(
    "settings",
    [{}, {"compare": "same"}, {"divergence": KL(), "teacher": TeacherPolicy.none()}],
    ids=["plain", "noise", "kl"],
)
def test_one_head_is_ema_teacher(settings: dict[str, Any], tmp_path: Path) -> None:
    """The same seed gives the same losses, bit for bit, and the same networks after training."""
    both: list[tuple[SelfDistillModule[Any, Any], list[float]]] = []
    for kind, more in ((EMATeacher, {}), (MultiHead, {"heads": 1})):
        torch.manual_seed(0)
        method = kind(cnn(), hidden_dim=8, out_dim=5, **settings, **more)
        method.student.noise = 0.1 if method.same_view else 0.0
        both.append((method, train(method, tmp_path).losses))
    (single, expected), (multi, losses) = both
    assert len(set(losses)) == len(losses) == 4
    assert losses == expected
    for a, b in zip(single.parameters(), multi.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_is_the_weighted_sum(tmp_path: Path) -> None:
    heads = [Head(weight=0.5), Head(weight=LinearSchedule(0.0, 4.0, 4)), Head()]
    record = train(module(heads=heads, weights={"head_3": 2.0}), tmp_path)
    for step, (loss, terms) in enumerate(zip(record.losses, record.terms, strict=True)):
        assert list(terms) == ["head_1", "head_2", "head_3"]
        expected = 0.5 * terms["head_1"] + step * terms["head_2"] + 2 * terms["head_3"]
        assert loss == pytest.approx(float(expected), rel=1e-5)


def softmax(x: list[float]) -> list[float]:
    e = [math.exp(v) for v in x]
    return [v / sum(e) for v in e]


def by_hand(name: str, s: list[float], t: list[float]) -> float:
    if name == "l2":
        return sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
    if name == "kl":
        return sum(p * math.log(p / q) for p, q in zip(softmax(s), softmax(t), strict=True))
    dot = sum(a * b for a, b in zip(s, t, strict=True))
    return 1 - dot / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))


def test_each_head_has_its_divergence_size_and_view() -> None:
    """Values as loops give them, over the pairs that the head compares; gradients by central differences."""
    method = module(heads=[Head(), Head(out_dim=3, divergence=KL()), Head(out_dim=4, divergence=Cosine(), view=2)])
    names, dims = ("l2", "kl", "cosine"), (5, 3, 4)
    pairs = (PAIRS, PAIRS, PAIRS[2:])
    torch.manual_seed(1)
    s = tuple(torch.randn(3, B, d, requires_grad=True) for d in dims)
    t = tuple(torch.randn(2, B, d, requires_grad=True) for d in dims)
    terms = method.terms(HeadOutputs(s[0], s[0], PAIRS, s), HeadOutputs(t[0], t[0], heads=t))
    sum(terms.values(), torch.zeros(())).backward()
    for h, name in enumerate(names):

        def value(student: Tensor, h: int = h, name: str = name) -> float:
            total = [by_hand(name, student[v, b].tolist(), t[h][g, b].tolist()) for v, g in pairs[h] for b in range(B)]
            return sum(total) / len(total)

        assert terms[f"head_{h + 1}"].item() == pytest.approx(value(s[h]), rel=1e-5)
        assert t[h].grad is None
        grad = s[h].grad
        assert grad is not None
        for entry in ((0, 0, 0), (2, 4, 2)):
            up, down = s[h].detach().double(), s[h].detach().double()
            up[entry] += 1e-4
            down[entry] -= 1e-4
            assert grad[entry].item() == pytest.approx((value(up) - value(down)) / 2e-4, rel=1e-3, abs=1e-5)


def test_a_head_on_a_stage_sees_the_mean_of_its_map() -> None:
    method = module(heads=[Head(), Head(layer=1, out_dim=3), Head(layer=-1)]).eval()
    maps: dict[int, Tensor] = {}
    for i in (1, 3):
        method.student.backbone.stages[i].register_forward_hook(lambda *a, i=i: maps.__setitem__(i, a[-1]))
    batch = views()
    predictions = method.predictions(batch)
    heads = method.student.head.get_submodule("heads")
    for h, stage in ((1, 1), (2, 3)):
        expected = heads[h](maps[stage].mean((2, 3))).unflatten(0, (3, B))
        torch.testing.assert_close(predictions.heads[h], expected)
    assert [x.shape[-1] for x in predictions.heads] == [5, 3, 5]
    assert torch.equal(predictions.projections, predictions.heads[0])
    assert [x.shape[:2] for x in method.targets(batch).heads] == [(2, B)] * 3


def test_every_parameter_of_the_student_learns() -> None:
    method, batch = module(heads=[Head(layer=0), Head(), Head(layer=2, view=2)]), views()
    with torch.no_grad():
        targets = method.targets(batch)
    sum(method.terms(method.predictions(batch), targets).values(), torch.zeros(())).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) is not name.startswith("teacher."), name


def test_heads_on_the_features_take_crops_of_any_size() -> None:
    predictions = module(heads=2).predictions(views(local=6))
    assert [x.shape for x in predictions.heads] == [(3, B, 5)] * 2
    assert predictions.pairs == PAIRS


def test_the_teacher_is_ema_teachers() -> None:
    method, single = module(), EMATeacher(cnn())
    assert method.teacher_policy == single.teacher_policy
    assert method.evaluated_tower is method.teacher


def test_the_step_hands_every_head_to_callbacks_without_graph(tmp_path: Path) -> None:
    seen: list[HeadOutputs] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
            seen.append(outputs["student"])

    method = module()
    torch.manual_seed(2)
    batches: Any = [views()]
    bare_trainer(tmp_path, Look(), max_epochs=1).fit(method, DataLoader(batches, batch_size=None))
    assert len(seen[0].heads) == 3
    assert not any(head.requires_grad for head in seen[0].heads)
    assert isinstance(seen[0], Outputs)


def test_refusals() -> None:
    for heads in (0, [], [Head(layer=0), Head(layer=1)]):
        with pytest.raises(ValueError, match=r"method.heads: .*one of them with layer=null"):
            module(heads=heads)
    with pytest.raises(ValueError, match=r"layers: 9 given, allowed is -4 to 3"):
        module(heads=[Head(), Head(layer=9)])
    with pytest.raises(ValueError, match=r"layers: 0 given, allowed are 1"):
        module(heads=[Head(), Head(layer=0)]).student(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"layers: ModuleBackbone gives no intermediate outputs"):
        MultiHead(ModuleBackbone(nn.Flatten(), dim=64), heads=[Head(), Head(layer=0)])
    with pytest.raises(ValueError, match=r"method.compare: 'all' given, allowed is crossed or same"):
        module(compare="all")
    method, batch = module(heads=[Head(), Head(view=7)]), views()
    with pytest.raises(ValueError, match=r"no pair of crops"):
        method.terms(method.predictions(batch), method.targets(batch))


def test_the_width_of_the_projections_is_that_of_the_first_head() -> None:
    assert module(heads=[Head(out_dim=3), Head()]).student.head.out_dim == 3
