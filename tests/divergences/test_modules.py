"""One suite for all divergences: the formula, sample by sample in Python floats, and what each declares."""

import copy
import inspect
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

import selfdistill.divergences as divergences
from selfdistill.divergences import (
    JS,
    KL,
    L2,
    Cosine,
    CrossEntropy,
    Divergence,
    FunctionDivergence,
    NormalizedL2,
    SmoothL1,
    as_divergence,
)
from selfdistill.schedules import Clock, LinearSchedule

CONF = Path(__file__).parents[2] / "conf" / "divergence"
Vector = Sequence[float]


def log_softmax(x: Vector, temperature: float) -> list[float]:
    peak = max(x)
    log_sum = math.log(math.fsum(math.exp((v - peak) / temperature) for v in x))
    return [(v - peak) / temperature - log_sum for v in x]


def dot(x: Vector, y: Vector) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def kl(log_p: Vector, log_q: Vector) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def js(log_p: Vector, log_q: Vector) -> float:
    mixture = [(math.exp(a) + math.exp(b)) / 2 for a, b in zip(log_p, log_q, strict=True)]
    entropies = [-dot([math.exp(a) for a in log], log) for log in (log_p, log_q)]
    return -math.fsum(m * math.log(m) for m in mixture if m > 0) - sum(entropies) / 2


def smooth_l1(x: Vector, y: Vector, beta: float) -> float:
    distances = [abs(a - b) for a, b in zip(x, y, strict=True)]
    return math.fsum(d * d / (2 * beta) if d < beta else d - beta / 2 for d in distances) / len(x)


def cosine(x: Vector, y: Vector) -> float:
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


@dataclass
class Case:
    name: str
    module: Divergence
    reference: Callable[[Vector, Vector], float]
    at_unit_temperatures: bool = True

    def expected(self, student: Tensor, teacher: Tensor) -> Tensor:
        rows = zip(student.double().flatten(0, -2), teacher.double().flatten(0, -2), strict=True)
        values = [self.reference(s.tolist(), t.tolist()) for s, t in rows]
        return torch.tensor(values, dtype=torch.float64).view(student.shape[:-1])


CASES = [
    Case("l2", L2(), lambda s, t: math.fsum((a - b) ** 2 for a, b in zip(s, t, strict=True))),
    Case("l2_normalized", NormalizedL2(), lambda s, t: 2 - 2 * cosine(s, t)),
    Case("cosine", Cosine(), lambda s, t: 1 - cosine(s, t)),
    Case("smooth_l1", SmoothL1(), lambda s, t: smooth_l1(s, t, 1.0)),
    Case("smooth_l1 beta 2", SmoothL1(beta=2), lambda s, t: smooth_l1(s, t, 2.0)),
    Case("kl", KL(), lambda s, t: kl(log_softmax(s, 1), log_softmax(t, 1))),
    Case(
        "kl cold",
        KL("student_teacher", 0.1, 0.02),
        lambda s, t: kl(log_softmax(s, 0.1), log_softmax(t, 0.02)),
        False,
    ),
    Case("kl_reverse", KL("teacher_student"), lambda s, t: kl(log_softmax(t, 1), log_softmax(s, 1))),
    Case(
        "kl_reverse cold",
        KL("teacher_student", 0.1, 0.02),
        lambda s, t: kl(log_softmax(t, 0.02), log_softmax(s, 0.1)),
        False,
    ),
    Case("js", JS(), lambda s, t: js(log_softmax(s, 1), log_softmax(t, 1))),
    Case("js cold", JS(0.1, 0.02), lambda s, t: js(log_softmax(s, 0.1), log_softmax(t, 0.02)), False),
    Case(
        "cross_entropy",
        CrossEntropy(),
        lambda s, t: -dot([math.exp(a) for a in log_softmax(t, 1)], log_softmax(s, 1)),
    ),
    Case(
        "cross_entropy cold",
        CrossEntropy(0.1, 0.02),
        lambda s, t: -dot([math.exp(a) for a in log_softmax(t, 0.02)], log_softmax(s, 0.1)),
        False,
    ),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
plain = pytest.mark.parametrize(
    "case", [case for case in CASES if case.at_unit_temperatures], ids=lambda case: case.name
)


def pair(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return student.to(dtype), teacher.to(dtype)


def test_every_divergence_has_a_case():
    public = {value for name in divergences.__all__ if inspect.isclass(value := getattr(divergences, name))}
    assert public - {Divergence, FunctionDivergence} == {type(case.module) for case in CASES}


@every
@settings(derandomize=True, deadline=None, max_examples=15)
@given(data=st.data())
def test_equals_the_formula_at_any_shape(case: Case, data: st.DataObject):
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    size = data.draw(st.integers(2, 9))
    student, teacher = pair(*shape, size, scale=data.draw(st.sampled_from([0.1, 1, 10])))
    if not shape:
        result = case.module(student, teacher)
        torch.testing.assert_close(result, case.expected(student[None], teacher[None])[0], rtol=1e-9, atol=1e-12)
        return
    torch.testing.assert_close(case.module(student, teacher), case.expected(student, teacher), rtol=1e-9, atol=1e-12)
    result = case.module(student.float(), teacher.float())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), case.expected(student.float(), teacher.float()), rtol=1e-4, atol=1e-5)


@every
def test_gradients_to_both_sides(case: Case):
    student, teacher = (x.requires_grad_() for x in pair(3, 4))
    assert torch.autograd.gradcheck(case.module, (student, teacher))


@plain
def test_symmetric_as_declared(case: Case):
    student, teacher = pair(6, 5)
    there, back = case.module(student, teacher), case.module(teacher, student)
    assert torch.allclose(there, back, rtol=1e-12, atol=0) == case.module.symmetric
    assert torch.allclose(there, back, rtol=1e-3) == case.module.symmetric


@plain
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_least_at_equality_and_zero_there_as_declared(case: Case, scale: float):
    x = pair(6, 5, dtype=torch.float32, scale=scale)[0]
    value = case.module(x, x.clone())
    if case.module.zero_at_equality:
        torch.testing.assert_close(value, torch.zeros(6), rtol=0, atol=1e-6)
    if scale <= 1:  # beyond, the softmax is one-hot and a difference goes unseen
        assert bool((case.module(x + torch.linspace(-1, 1, 5), x) > value + 1e-3).all())
        assert bool((value > 0.1).all()) != case.module.zero_at_equality


@plain
def test_scale_invariant_as_declared(case: Case):
    student, teacher = pair(6, 5)
    value, scaled = case.module(student, teacher), case.module(3 * student, 0.2 * teacher)
    assert torch.allclose(value, scaled, rtol=1e-12, atol=0) == case.module.scale_invariant
    assert torch.allclose(value, scaled, rtol=1e-3) == case.module.scale_invariant


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32_under_any_autocast(case: Case, dtype: torch.dtype):
    student, teacher = pair(6, 8, dtype=dtype, scale=3)
    expected = case.module(student.float(), teacher.float())
    assert expected.dtype == torch.float32
    assert torch.equal(case.module(student, teacher), expected)
    assert torch.equal(case.module(student, teacher.float()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(case.module(student, teacher), expected)
        assert torch.equal(case.module(student.float(), teacher.float()), expected)


def extremes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both ends of the promised range: opposite, tied, equal, hot against flat, and nothing at all."""
    high = torch.tensor([1e4, 1e4, -1e4, 0.0])
    student = torch.stack([high, -high, high, torch.zeros(4), high, pair(4)[0] * 2e3, torch.zeros(4)])
    teacher = torch.stack([-high, high, high, high, torch.zeros(4), pair(4)[1] * 2e3, torch.zeros(4)])
    return student.to(dtype), teacher.to(dtype)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_and_exact_at_the_extremes(case: Case, dtype: torch.dtype):
    student, teacher = extremes(dtype)
    wide = [x.float().clone().requires_grad_() for x in (student, teacher)]
    value = case.module(*wide)
    value.sum().backward()
    assert bool(value.isfinite().all())
    assert bool(torch.stack([x.grad for x in wide]).isfinite().all())
    nonzero = slice(0, 3)  # where the reference's cosine is defined
    expected = case.expected(student, teacher) if case.module.domain == "logits" else None
    if expected is None:
        value, expected = value[nonzero], case.expected(student[nonzero], teacher[nonzero])
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-5, atol=1e-5)

    narrow = [x.clone().requires_grad_() for x in extremes(dtype)]
    case.module(*narrow).sum().backward()
    for x, reference in zip(narrow, wide, strict=True):
        # Beyond the largest number of fp16 both are inf: what a loss scaler looks for.
        assert torch.equal(x.grad, reference.grad.to(dtype))


@every
def test_survives_pickling_and_copying(case: Case):
    student, teacher = pair(3, 4)
    for twin in (pickle.loads(pickle.dumps(case.module)), copy.deepcopy(case.module)):
        assert torch.equal(twin(student, teacher), case.module(student, teacher))


@every
@pytest.mark.parametrize(
    ("student", "teacher"), [((3, 4), (3, 5)), ((3, 4), (4,)), ((3, 4), (3, 1)), ((), ()), ((3, 0), (3, 0))]
)
def test_refuses_other_shapes(case: Case, student: tuple[int, ...], teacher: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"^student and teacher must have one shape .*got \[.*\] and \[.*\]$"):
        case.module(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("divergence", [KL, JS, CrossEntropy])
def test_temperatures_follow_the_clock(divergence: type[KL] | type[JS] | type[CrossEntropy]):
    student, teacher = pair(3, 4)
    module = divergence(student_temperature=0.1, teacher_temperature=LinearSchedule(0.04, 0.08, duration=10))
    for clock, temperature in [(None, 0.04), (Clock(), 0.04), (Clock(5, 20), 0.06), (Clock(10, 20), 0.08)]:
        now = divergence(student_temperature=0.1, teacher_temperature=temperature)
        torch.testing.assert_close(module(student, teacher, clock), now(student, teacher))
    module = divergence(student_temperature=LinearSchedule(0.2, 0.1, duration=10))
    now = divergence(student_temperature=0.15)
    torch.testing.assert_close(module(student, teacher, Clock(5, 20)), now(student, teacher))


def test_schedule_that_reaches_zero_names_the_temperature():
    module = KL(teacher_temperature=LinearSchedule(1.0, 0.0, duration=10))
    with pytest.raises(ValueError, match=r"^teacher_temperature must be a finite number > 0, got 0\.0$"):
        module(*pair(3, 4), Clock(10, 10))


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, "0.1", None, True])
def test_refuses_values_out_of_range_at_construction(value: float):
    for divergence in (KL, JS, CrossEntropy):
        for name in ("student_temperature", "teacher_temperature"):
            with pytest.raises(ValueError, match=f"^{name} must be a finite number > 0, got {value!r}$"):
                divergence(**{name: value})
    with pytest.raises(ValueError, match=f"^beta must be a finite number > 0, got {value!r}$"):
        SmoothL1(beta=value)


def test_refuses_an_unknown_direction():
    with pytest.raises(ValueError, match=r"^direction must be one of student_teacher, teacher_student, got 'up'$"):
        KL(direction="up")


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return ((student - teacher).abs() * self.weight).sum(-1)


def manhattan(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).abs().sum(-1)


def matrix_product(student: Tensor, teacher: Tensor) -> Tensor:
    return (student[..., None, :] @ teacher[..., None]).flatten(-3)


def test_a_function_becomes_a_divergence():
    student, teacher = pair(3, 4)
    module = as_divergence(manhattan)
    assert isinstance(module, FunctionDivergence)
    torch.testing.assert_close(module(student, teacher, Clock()), (student - teacher).abs().sum(-1))
    assert torch.equal(pickle.loads(pickle.dumps(module))(student, teacher), module(student, teacher))
    assert module(student.half(), teacher.half()).dtype == torch.float32
    assert module.domain == "logits"
    assert not any((module.symmetric, module.zero_at_equality, module.scale_invariant))
    assert as_divergence(module) is module


def test_a_function_runs_with_autocast_off():
    student, teacher = pair(3, 4, dtype=torch.float32)
    module = as_divergence(matrix_product)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(student, teacher).dtype == torch.float32


def test_a_module_of_the_user_keeps_its_parameters():
    module = as_divergence(Learned())
    assert [name for name, _ in module.named_parameters()] == ["function.weight"]
    assert module(*pair(3, 4)).shape == (3,)


@pytest.mark.parametrize("reduced", [torch.mean, lambda x: x, lambda x: x.sum(0)])
def test_a_function_must_return_one_number_a_sample(reduced: Callable[[Tensor], Tensor]):
    module = as_divergence(lambda s, t: reduced(s - t))
    with pytest.raises(ValueError, match=r"^the divergence function must return shape \[3\], .*got \["):
        module(*pair(3, 4))
    with pytest.raises(ValueError, match="one shape"):
        module(torch.zeros(3, 4), torch.zeros(3, 5))


@pytest.mark.parametrize("value", [KL, "kl", 3, None])
def test_as_divergence_refuses_anything_else(value: object):
    with pytest.raises(TypeError, match="^divergence must be a Divergence or a function"):
        as_divergence(value)


# auto is no divergence: the method takes its own
FILES = sorted(path for path in CONF.glob("*.yaml") if path.stem != "auto")


def test_every_divergence_has_a_configuration():
    targets = {yaml.safe_load(path.read_text())["_target_"].rsplit(".", 1)[1] for path in FILES}
    assert targets == {type(case.module).__name__ for case in CASES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configuration_states_every_argument_with_its_default(path: Path):
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    module = instantiate(config)
    case = next(case for case in CASES if case.name == path.stem)
    student, teacher = pair(3, 4)
    assert type(module) is type(case.module)
    assert torch.equal(module(student, teacher), case.module(student, teacher))
    del config["_target_"]
    assert module.__module__ == "selfdistill.divergences.modules"
    signature = inspect.signature(type(module)).parameters
    defaults = {name: p.default for name, p in signature.items() if p.default is not inspect.Parameter.empty}
    if path.stem == "kl_reverse":
        defaults["direction"] = "teacher_student"
    assert config == defaults
