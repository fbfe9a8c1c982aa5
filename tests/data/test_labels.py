"""A part of the labels: as many as asked for of each class, always the same ones, in training batches only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.data import DataModule, Digits
from selfdistill.data.labels import labelled_part
from selfdistill.views import Augment, CropSpec, ViewRecipe

LABELS = torch.tensor([0] * 40 + [1] * 10 + [3] * 3 + [-1] * 7)


def counts(labels: Tensor) -> dict[int, int]:
    found = Counter(labels.tolist())
    found.pop(-1, None)
    return dict(found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {0: 40, 1: 10, 3: 3}),
        (1.0, {0: 40, 1: 10, 3: 3}),
        (0.1, {0: 4, 1: 1, 3: 1}),
        (1e-6, {0: 1, 1: 1, 3: 1}),
        (1, {0: 1, 1: 1, 3: 1}),
        (5, {0: 5, 1: 5, 3: 3}),
    ],
)
def test_as_many_of_each_class(given: float | None, expected: dict[int, int]) -> None:
    part = labelled_part(LABELS, given)
    assert counts(part) == expected
    assert ((part == LABELS) | (part == -1)).all()


def test_a_smaller_part_is_within_a_larger_one_and_not_the_first_images() -> None:
    small, large = labelled_part(LABELS, 2) >= 0, labelled_part(LABELS, 0.5) >= 0
    assert (large | ~small).all()
    assert not small[:2].all()


def module(engine: str = "auto", **settings: Any) -> DataModule:
    recipe = ViewRecipe([CropSpec(8, Augment(), count=2)], engine=engine)
    made = DataModule(Digits(), recipe, batch_size=301, drop_last=False, **settings)
    made.setup()
    return made


def seen(made: DataModule) -> tuple[Tensor, Tensor]:
    """Labels and positions of an epoch, by position."""
    batches = [made.on_after_batch_transfer(batch, 0) for batch in made.train_dataloader()]
    labels, index = torch.cat([b.labels for b in batches]), torch.cat([b.index for b in batches])
    return labels[index.argsort()], index.sort().values


@pytest.mark.parametrize("engine", ["batched", "cpu"])
def test_training_batches_hide_the_others_whatever_the_seed(engine: str) -> None:
    one, other = (seen(module(engine, labelled=3, seed=seed)) for seed in (0, 1))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], torch.arange(1204))
    assert counts(one[0]) == dict.fromkeys(range(10), 3)
    known = one[0] >= 0
    assert torch.equal(one[0][known], Digits().split("train").labels[known])


def test_evaluation_keeps_all_labels() -> None:
    made = module(labelled=1)
    seen(made)
    assert made.labelled
    for split in ("train", "validation", "test"):
        labels = torch.cat([labels for _, labels in made.evaluation_loader(split)])  # type: ignore[arg-type]
        assert torch.equal(labels, Digits().split(split).labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [0, 0.0, -1, 1.5, float("nan"), True, "half"])
def test_refuses_what_is_no_share_and_no_number(given: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.labelled: .* given, allowed is a share") as caught:
        module(labelled=given)
    assert "\n" not in str(caught.value)


def test_the_supervised_objective_learns_from_them_alone(compose: Any) -> None:
    """Cross-entropy over the labelled images of a batch, by a loop."""
    from selfdistill.assembly import build_data, build_method

    config = compose("method=ema_teacher", "objective=supervised", "data.labelled=0.1", "data.batch_size=64")
    built, made = build_method(config), build_data(config)
    views = made.on_after_batch_transfer(next(iter(made.train_dataloader())), 0)
    predictions = built.predictions(views)
    objective: Any = built.objectives["supervised"]
    loss = objective.terms(built, views, predictions, None)["supervised"]
    values = []
    for crop in predictions.features:
        for x, label in zip(crop, views.labels.tolist(), strict=True):
            if label >= 0:
                values.append(-objective.classifier(x).log_softmax(-1)[label])
    assert 0 < len(values) < 2 * 64
    assert loss.item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)
