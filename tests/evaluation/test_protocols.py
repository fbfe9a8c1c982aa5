"""Protocols: which split decides, what is left out, and what a subject keeps as it was."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from selfdistill import BYOL
from selfdistill.evaluation import few_shot_accuracy, knn_accuracy, linear_probe
from selfdistill.evaluation.protocols import KNN, FewShot, Figure, Geometry, Linear, Subject, moved, table


class Flat(nn.Module):
    """Pixels as features, counting the images that pass."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.noise = nn.Dropout(0.5)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.noise(images.flatten(1) * self.weight)


def rows(seed: int, count: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    return torch.randn(count, 6, generator=generator) + 0.7 * y[:, None], y


class Data:
    def __init__(self, **splits: tuple[Tensor, Tensor]) -> None:
        self.splits = splits

    def evaluation_loader(self, split: str) -> DataLoader[Any]:
        x, y = self.splits[split]
        return DataLoader(TensorDataset(x[:, None, None], y), batch_size=16)


def subject(**changes: tuple[Tensor, Tensor]) -> Subject:
    torch.manual_seed(0)
    module = BYOL(Flat(), hidden_dim=4, out_dim=2)
    splits = {"train": rows(0, 60), "validation": rows(1, 45), "test": rows(2, 45)}
    return Subject(module, Data(**{**splits, **changes}))  # type: ignore[arg-type]


def test_a_subject_embeds_each_image_once_and_leaves_no_trace() -> None:
    torch.manual_seed(3)
    state, python = torch.get_rng_state(), random.getstate()
    module = BYOL(Flat(), hidden_dim=4, out_dim=2)
    module.student.backbone.eval()
    torch.set_rng_state(state)
    modes = [part.training for part in module.modules()]
    made = Subject(module, Data(train=rows(0, 60), validation=rows(1, 45), test=rows(2, 45)))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert [part.training for part in module.modules()] == modes
    for measure in (KNN(), Linear(), FewShot(draws=2, fraction_draws=1), Geometry()):
        measure(made)
    assert module.student.backbone.module.seen == 60 + 45 + 45 + 45  # the last: moved, for alignment
    torch.testing.assert_close(made.test[0], rows(2, 45)[0])  # no dropout


def test_validation_chooses_and_test_is_told() -> None:
    # on the validation images the nearest neighbour is right, on the test images a vote of many
    train, test = rows(0, 60), rows(2, 45)
    made = subject(validation=train)
    figures = KNN(ks=(1, 15, 500), temperatures=(0.07, 1.0))(made)
    *swept, chosen = figures
    assert {f.setting for f in swept} == {f"k={k} temperature={t:g}" for k in (1, 15, 60) for t in (0.07, 1.0)}
    for f in swept:
        k, t = (float(part.split("=")[1]) for part in f.setting.split())
        assert f.value == knn_accuracy(*train, *test, k=int(k), temperature=t)
    assert chosen.setting.startswith("chosen on validation: k=1 ")
    assert chosen.value == knn_accuracy(*train, *test, k=1)
    assert max(f.value for f in swept) > chosen.value


def test_few_shot_leaves_out_what_the_smallest_class_has_not() -> None:
    figures = FewShot(shots=(1, 5, 30), draws=4, fractions=(0.5,), fraction_draws=2)(subject())
    assert [f.setting for f in figures] == ["1 shot", "5 shots", "0.5 of the labels"]
    expected = few_shot_accuracy(*rows(0, 60), *rows(2, 45), shots=5, draws=4)
    assert (figures[1].value, figures[1].ci95) == (expected.mean, expected.ci95)


def test_linear_is_the_probe_and_names_its_solvers() -> None:
    made = subject()
    assert Linear()(made) == [Figure("linear", "lbfgs", linear_probe(*rows(0, 60), *rows(2, 45)))]
    assert 0.4 < Linear(solver="sgd", epochs=20)(made)[0].value <= 1
    with pytest.raises(ValueError, match="'svm' given, allowed is lbfgs or sgd"):
        Linear(solver="svm")(made)  # type: ignore[arg-type]


def test_absent_classes_are_named_and_count_as_wrong() -> None:
    x, y = rows(0, 60)
    made = subject(train=(x[y < 2], y[y < 2]))
    assert made.absent == [2]
    for measure in (KNN(ks=(5,)), Linear(), FewShot(shots=(1,), draws=2, fractions=())):
        assert all(f.value <= 2 / 3 for f in measure(made))


def test_geometry_looks_at_no_more_than_it_may() -> None:
    x, y = rows(2, 45)
    whole, half = Geometry()(subject()), Geometry(most=25)(subject())
    fewer = Geometry()(subject(test=(x[::2], y[::2])))
    assert half == fewer != whole
    assert {f.setting for f in whole} >= {"effective rank", "RankMe", "uniformity"}


def test_alignment_pairs_each_image_with_itself_moved() -> None:
    images = torch.arange(2 * 64.0).view(2, 1, 8, 8)
    by_hand = images.clone()
    by_hand[:, :, 1:, 1:] = images[:, :, :-1, :-1]
    by_hand[:, :, 0, 1:], by_hand[:, :, 1:, 0] = images[:, :, 1, :-1], images[:, :, :-1, 1]
    by_hand[:, :, 0, 0] = images[:, :, 1, 1]
    torch.testing.assert_close(moved(images), by_hand)

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 2
    test = torch.rand(20, 1, 8, 8, generator=generator)
    module = BYOL(Flat(), hidden_dim=4, out_dim=2)
    made = Subject(module, Pictures(test, labels))  # type: ignore[arg-type]
    found = {figure.setting: figure.value for figure in Geometry()(made)}
    one, other = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (test, moved(test)))
    assert found["alignment"] == pytest.approx(float((one - other).square().sum(1).mean()), rel=1e-5)


class Pictures:
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def evaluation_loader(self, split: str) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=7)


def test_the_table_has_a_line_a_figure() -> None:
    text = table([Figure("knn", "k=1", 0.5), Figure("few_shot", "1 shot", 0.25, 0.0126)])
    assert text.splitlines()[1].split() == ["knn", "k=1", "0.500"]
    assert text.splitlines()[2].endswith("0.250 ± 0.013")
