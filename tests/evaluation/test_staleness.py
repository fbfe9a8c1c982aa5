import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from selfdistill.evaluation.geometry import (
    AgeTracker,
    half_life,
    output_agreement,
    parameter_distance,
    steady_age,
)


@pytest.mark.parametrize("tensors", [1, 5, 150])
def test_distance_equals_that_of_the_flat_vectors(tensors: int) -> None:
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(i % 4 + 1, 3, generator=generator) for i in range(tensors)]
    teacher = [p + 0.1 * torch.randn(p.shape, generator=generator) for p in student]
    flat_t, flat_s = (torch.cat([p.flatten() for p in ps]).double() for ps in (teacher, student))
    expected = (flat_t - flat_s).norm() / flat_s.norm()
    assert parameter_distance(teacher, student).item() == pytest.approx(expected.item(), rel=1e-5)


def test_distance_takes_generators_and_leaves_networks_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    distance = parameter_distance(network.parameters(), network.parameters())
    assert distance.item() == 0
    assert not distance.requires_grad
    assert parameter_distance([torch.ones(3).bfloat16()], [torch.full((3,), 2.0)]).item() == 0.5


def test_distance_to_a_zero_student_is_no_nan() -> None:
    assert parameter_distance([torch.zeros(3)], [torch.zeros(3)]).item() == 0
    assert parameter_distance([torch.ones(3)], [torch.zeros(3)]).item() > 1e30


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ([], [], "not empty"),
        ([torch.ones(2)], [torch.ones(2), torch.ones(1)], "1 parameters, student 2"),
        ([torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3, 1)], "parameter 1 is"),
    ],
)
def test_other_structures_are_refused(teacher: list[Tensor], student: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parameter_distance(teacher, student)
    assert "\n" not in str(caught.value)


def test_output_agreement_is_the_mean_cosine() -> None:
    student = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 0]])
    teacher = torch.tensor([[5.0, 0], [0, 2], [-1, 0], [1, 1]])
    assert output_agreement(student, teacher).item() == 0
    assert output_agreement(student[:2], teacher[:2]).item() == 0.5
    assert output_agreement(student.half().view(2, 2, 2), teacher.half().view(2, 2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="same inputs"):
        output_agreement(student, teacher[:1])


def test_age_equals_that_of_the_explicit_mixture() -> None:
    momenta = [0.0, 0.9, 0.5, 1.0, 0.99, 0.996, 0.3, 1.0]
    tracker, shares = AgeTracker(), {0: 1.0}
    for step, momentum in enumerate(momenta, start=1):
        shares = {born: share * momentum for born, share in shares.items()}
        shares[step] = 1 - momentum
        expected = sum(share * (step - born) for born, share in shares.items())
        assert tracker.update(momentum) == pytest.approx(expected)
        assert tracker.age == pytest.approx(expected)
        assert tracker.half_life == half_life(momentum)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_constant_momentum_settles_at_the_steady_age(momentum: float) -> None:
    tracker = AgeTracker()
    for _ in range(3000):
        tracker.update(momentum)
    assert tracker.age == pytest.approx(steady_age(momentum))
    assert steady_age(momentum) == pytest.approx(momentum / (1 - momentum))


def test_copies_are_fresh_and_frozen_teachers_age() -> None:
    assert AgeTracker(age=50.0).update(0.0) == 0
    tracker = AgeTracker()
    for _ in range(7):
        tracker.update(1.0)
    assert tracker.age == 7
    assert AgeTracker(**dataclasses.asdict(tracker)) == tracker
    assert steady_age(1.0) == math.inf


@pytest.mark.parametrize(("momentum", "steps"), [(0.99, 69), (0.996, 173), (0.999, 693), (0.9998, 3465)])
def test_half_life_of_the_papers_momenta(momentum: float, steps: int) -> None:
    assert round(half_life(momentum)) == steps


def test_half_life_at_the_ends_and_beyond() -> None:
    assert (half_life(0), half_life(1)) == (0, math.inf)
    for momentum in (-0.1, 1.001, float("nan")):
        for use in (half_life, steady_age, AgeTracker().update):
            with pytest.raises(ValueError, match="momentum="):
                use(momentum)
