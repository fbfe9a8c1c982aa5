"""The batch type: who sees what, which crops make pairs, and that Lightning can carry it."""

from __future__ import annotations

import itertools

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from selfdistill.views import RawBatch, Views

BOTH, TEACHER, STUDENT = frozenset({"teacher", "student"}), frozenset({"teacher"}), frozenset({"student"})
LAYOUTS = {
    "byol": (BOTH, BOTH),
    "moco": (STUDENT, TEACHER),
    "dino": (BOTH, BOTH, STUDENT, STUDENT),
    "mixed": (STUDENT, TEACHER, BOTH),
    "one": (BOTH,),
}


def views(roles: tuple[frozenset[str], ...]) -> Views:
    return Views([torch.full((3, 1, 2, 2), float(crop)) for crop in range(len(roles))], roles)


@pytest.mark.parametrize("roles", LAYOUTS.values(), ids=LAYOUTS)
def test_slots_and_pairs(roles: tuple[frozenset[str], ...]) -> None:
    batch = views(roles)
    student = [int(crop[0, 0, 0, 0]) for crop in batch.student]
    teacher = [int(crop[0, 0, 0, 0]) for crop in batch.teacher]
    assert student == [crop for crop, seen_by in enumerate(roles) if "student" in seen_by]
    assert teacher == [crop for crop, seen_by in enumerate(roles) if "teacher" in seen_by]
    every = set(itertools.product(range(len(student)), range(len(teacher))))
    assert set(batch.pairs) == {(s, t) for s, t in every if student[s] != teacher[t]}
    assert set(batch.same) == every - set(batch.pairs)
    assert len(batch.pairs) + len(batch.same) == len(every)


def test_dino_counts_its_terms() -> None:
    batch = views((BOTH, BOTH, *[STUDENT] * 8))
    assert len(batch.pairs) == 2 * (8 + 1)
    assert batch.batch_size == 3


def test_lightning_moves_it() -> None:
    batch = views(LAYOUTS["dino"])
    batch.masks["block"] = torch.ones(3, 4, dtype=torch.bool)
    batch.index = torch.arange(3)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Views)
    assert moved.roles == batch.roles
    assert moved.pairs == batch.pairs
    assert moved.labels is None
    assert moved.index is not None
    assert {t.device.type for t in (*moved.crops, *moved.masks.values(), moved.index)} == {"meta"}


def test_raw_batch_keeps_its_index_on_the_cpu() -> None:
    batch = RawBatch(torch.zeros(2, 1, 4, 4), torch.arange(2), epoch=1, labels=torch.zeros(2))
    moved = batch.to(torch.device("meta"))
    assert moved.images.device.type == moved.labels.device.type == "meta"  # type: ignore[union-attr]
    assert moved.index.device.type == "cpu"
    assert moved.epoch == 1


def test_raw_batch_takes_its_masks_along() -> None:
    batch = RawBatch(torch.zeros(2, 1, 4, 4), torch.arange(2), epoch=1, masks={"mask": torch.zeros(2, 2, 4)})
    assert batch.to(torch.device("meta")).masks["mask"].device.type == "meta"


def test_masks_of_the_students_crops() -> None:
    crops = [torch.zeros(3, 1, size, size) for size in (4, 4, 2, 2)]
    batch = Views(crops, (BOTH, BOTH, STUDENT, STUDENT), masks={"mask": torch.rand(2, 3, 4) < 0.5})
    first, second, *local = batch.student_masks
    assert torch.equal(first, batch.masks["mask"][0])  # type: ignore[arg-type]
    assert torch.equal(second, batch.masks["mask"][1])  # type: ignore[arg-type]
    assert local == [None, None]
    with pytest.raises(ValueError, match="needs the masks 'keep', the recipe makes mask; choose views"):
        batch.mask("keep")


@pytest.mark.parametrize(("crops", "roles"), [(0, 0), (1, 2)])
def test_refused(crops: int, roles: int) -> None:
    with pytest.raises(ValueError, match="views:"):
        Views([torch.zeros(1, 1, 2, 2)] * crops, (BOTH,) * roles)
