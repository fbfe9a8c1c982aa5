"""Fine-tuning learns, and leaves the module as it found it."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from selfdistill import BYOL, EMATeacher, SelfDistillModule
from selfdistill.evaluation.finetune import finetune, shifted_and_mirrored
from selfdistill.networks import SmallCNN


def images(seed: int, count: int = 48) -> DataLoader[tuple[Tensor, ...]]:
    """Two classes, lying and standing stripes; labels 3 and 8."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    y = torch.arange(count) % 2
    x[y == 1, :, ::2] += 3
    x[y == 0, :, :, ::2] += 3
    return DataLoader(TensorDataset(x, torch.tensor([3, 8])[y]), batch_size=20)


def module(method: type = BYOL) -> SelfDistillModule:  # type: ignore[type-arg]
    torch.manual_seed(0)
    settings = {"hidden_dim": 8, "out_dim": 4} if method is BYOL else {}
    return method(SmallCNN(1, (4, 4, 8, 8)), **settings)


@pytest.mark.parametrize("method", [BYOL, EMATeacher])
def test_learns_and_leaves_the_module_alone(method: type) -> None:
    subject = module(method)
    subject.student.backbone.eval()
    modes = [part.training for part in subject.modules()]
    gradients = [p.requires_grad for p in subject.parameters()]
    before = copy.deepcopy(subject.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    accuracy = finetune(subject, images(0), images(1), epochs=8, batch_size=12, lr=1e-2)  # type: ignore[arg-type]
    assert accuracy >= 0.9
    assert all(torch.equal(value, before[name]) for name, value in subject.state_dict().items())
    assert [part.training for part in subject.modules()] == modes
    assert [p.requires_grad for p in subject.parameters()] == gradients
    assert all(p.grad is None for p in subject.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]


def test_is_deterministic_and_trains_the_evaluated_backbone() -> None:
    subject = module(EMATeacher)
    with torch.no_grad():  # a student that would give no information
        for p in subject.student.backbone.parameters():
            p.zero_()
    first = finetune(subject, images(0), images(1), epochs=8, batch_size=12, lr=1e-2)  # type: ignore[arg-type]
    torch.manual_seed(77)
    assert finetune(subject, images(0), images(1), epochs=8, batch_size=12, lr=1e-2) == first  # type: ignore[arg-type]
    assert first >= 0.9


def test_a_share_of_the_labels_is_enough_to_run() -> None:
    few = finetune(module(), images(0), images(1), fraction=0.05, epochs=1)  # type: ignore[arg-type]
    assert 0 <= few <= 1


def test_augmented_images_are_shifts_and_mirror_images() -> None:
    x = torch.randn(60, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(x, shifted_and_mirrored(x, torch.Generator().manual_seed(1)), strict=True):
        wide = np.pad(before.numpy(), ((0, 0), (1, 1), (2, 2)), mode="reflect")
        found = [
            (down, right, mirrored)
            for down in range(3)
            for right in range(5)
            for mirrored in (False, True)
            if np.array_equal(
                wide[:, down : down + 8, right : right + 16][..., :: -1 if mirrored else 1], after.numpy()
            )
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 20  # of 30


@pytest.mark.parametrize("augment", [False, True])
def test_augmentation_is_asked_for(augment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def watched(batch: Tensor, generator: torch.Generator) -> Tensor:
        sizes.append(len(batch))
        return shifted_and_mirrored(batch, generator)

    monkeypatch.setattr("selfdistill.evaluation.finetune.shifted_and_mirrored", watched)
    finetune(module(), images(0), images(1), epochs=2, batch_size=20, augment=augment)  # type: ignore[arg-type]
    assert sizes == [20, 20, 8] * 2 * augment


@pytest.mark.parametrize("settings", [{"fraction": 0.0}, {"epochs": 0}, {"batch_size": 0}])
def test_refusals(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        finetune(module(), images(0), images(1), **settings)  # type: ignore[arg-type]
