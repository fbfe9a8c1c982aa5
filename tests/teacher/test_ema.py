"""The update against closed forms."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import PatchDropout
from torch import nn
from torchvision.ops import StochasticDepth

from selfdistill.teacher import EMA, ema_update, make_teacher


class Last(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recurrent(x)[0]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.fill_(seed + 7)


def test_teacher_is_an_equal_copy_without_gradient_or_noise() -> None:
    student = network().train()
    teacher = make_teacher(student)
    for (name, s), t in zip(student.state_dict().items(), teacher.state_dict().values(), strict=True):
        assert torch.equal(s, t), name
        assert s.data_ptr() != t.data_ptr() or s.numel() == 0
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not teacher.training
    teacher.train()
    images = torch.randn(4, 3, 6, 6)
    assert torch.equal(teacher(images), teacher(images))
    assert not torch.equal(student(images), student(images))


def test_drop_path_is_off_in_the_teacher() -> None:
    student = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, drop_path_rate=0.5, num_classes=0)
    teacher = make_teacher(student).train()
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(teacher(images), teacher(images))


@pytest.mark.parametrize(
    "student",
    [
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
        nn.Sequential(PatchDropout(0.5), nn.Linear(8, 8)),
        StochasticDepth(0.5, "row"),
        Last(nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)),
    ],
    ids=["attention", "patch dropout", "stochastic depth", "lstm"],
)
def test_no_kind_of_dropout_is_left_in_the_teacher(student: nn.Module) -> None:
    tokens = torch.randn(6, 12, 8)
    teacher = make_teacher(student).train()
    assert torch.equal(teacher(tokens), teacher(tokens))
    assert not torch.equal(student.train()(tokens), student(tokens))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.996, 1.0])
def test_one_update_is_the_formula(momentum: float) -> None:
    student = network()
    teacher = make_teacher(student)
    randomise(student, 1)
    before = copy.deepcopy(teacher.state_dict())
    ema_update(teacher, student, momentum)
    for name, value in teacher.named_parameters():
        expected = momentum * before[name].double() + (1 - momentum) * student.state_dict()[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7)
    if momentum == 0.0:
        assert all(torch.equal(t, s) for t, s in zip(teacher.parameters(), student.parameters(), strict=True))
    if momentum == 1.0:
        assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())


def test_k_updates_towards_a_constant_student() -> None:
    """θ_k = s + m^k (θ_0 − s)."""
    student = nn.Linear(5, 3)
    teacher = make_teacher(student)
    start = teacher.weight.detach().clone().double()
    randomise(student)
    ema = EMA(teacher, student)
    for _ in range(100):
        ema.update(0.97)
    expected = student.weight.double() + 0.97**100 * (start - student.weight.double())
    torch.testing.assert_close(teacher.weight.double(), expected, rtol=0, atol=1e-6)


def test_lag_behind_a_drifting_student_is_m_over_one_minus_m() -> None:
    student, momentum = nn.Linear(1, 1, bias=False), 0.9
    nn.init.zeros_(student.weight)
    teacher = make_teacher(student)
    ema = EMA(teacher, student)
    for _ in range(300):
        with torch.no_grad():
            student.weight += 0.01
        ema.update(momentum)
    lag = (student.weight - teacher.weight).item() / 0.01
    assert lag == pytest.approx(momentum / (1 - momentum), rel=1e-3)


@pytest.mark.parametrize(("rule", "share"), [("own", 0.0), ("copy", 1.0), ("ema", 0.25)])
def test_float_buffers_follow_their_rule(rule: str, share: float) -> None:
    student = network()
    teacher = make_teacher(student)
    before = teacher[1].running_mean.clone()
    randomise(student, 3)
    EMA(teacher, student, rule).update(0.75)  # type: ignore[arg-type]
    expected = before + share * (student[1].running_mean - before)
    torch.testing.assert_close(teacher[1].running_mean, expected)
    assert teacher[1].num_batches_tracked.item() == 10


def test_integer_buffers_are_copied_in_a_swin() -> None:
    student = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=56, window_size=7)
    teacher = make_teacher(student)
    ema_update(teacher, student, 0.5)
    images = torch.randn(1, 3, 56, 56)
    student.eval()
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), student(images), rtol=0, atol=1e-6)


def test_momentum_one_leaves_buffers_too() -> None:
    student = network()
    teacher = make_teacher(student)
    before = copy.deepcopy(teacher.state_dict())
    randomise(student, 2)
    EMA(teacher, student, "copy").update(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_bf16_student_moves_a_float32_teacher_exactly() -> None:
    student = nn.Linear(4, 4)
    teacher = make_teacher(student)
    nn.init.constant_(teacher.weight, 1.0)
    student = student.to(torch.bfloat16)
    nn.init.constant_(student.weight, 2.0)
    ema = EMA(teacher, student)
    for _ in range(1000):
        ema.update(0.999)
    assert teacher.weight[0, 0].item() == pytest.approx(2 - 0.999**1000, abs=1e-3)


def test_half_precision_teacher_is_refused() -> None:
    student = nn.Linear(2, 2).to(torch.bfloat16)
    with pytest.raises(ValueError, match="weight.*float32"):
        EMA(make_teacher(student), student)


def test_structures_that_differ_are_named() -> None:
    teacher = make_teacher(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"'1.weight' exists in the teacher only"):
        ema_update(teacher, nn.Sequential(nn.Linear(2, 2)), 0.9)
    with pytest.raises(ValueError, match=r"'1.weight' is \(2, 2\) in the teacher and \(3, 2\)"):
        ema_update(teacher, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), 0.9)


def test_an_aliased_teacher_is_refused() -> None:
    student = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="shared with the student"):
        ema_update(student, student, 0.9)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_outside_zero_to_one_is_refused(momentum: float) -> None:
    student = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="allowed is 0 to 1"):
        ema_update(make_teacher(student), student, momentum)
