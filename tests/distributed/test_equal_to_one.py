"""2 and 4 processes are 1 process with the global batch: loss, gradient, both networks, state, rates, temperatures.

Under Lightning's Trainer with strategy="ddp", which is not asked to find unused parameters, and with
``sync_batchnorm=true`` for the networks that have batch norms. KoLeo alone looks at the
images of its own process, as DINOv2's does: the one process is told to take it over the same groups of images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fits
import pytest
import torch
from processes import run_ranks
from torch import Tensor

from selfdistill.methods import dinov2
from selfdistill.objectives import KoLeo
from selfdistill.regularizers import koleo

QUICK = ("dino_like", "moco_like_accumulated", "swav_like_queue", "mocov3_like")


def differences(name: str, ranks: list[dict[str, Tensor]], one: dict[str, Tensor]) -> list[str]:
    found = []
    for key, expected in one.items():
        parts = [values[key].double() for values in ranks]
        if key.startswith("sum "):
            parts = [torch.stack(parts).sum(0)]
        expected = expected.double()
        if key.endswith("queue.items"):
            # the same rows; those of one step stand in another order where a step has several crops
            parts, expected = [part.T @ part for part in parts], expected.T @ expected
        for part in parts:
            if not torch.allclose(part, expected, rtol=1e-6, atol=1e-8):
                found.append(f"{name}, {key}: {(part - expected).abs().max():.2e} of {expected.abs().max():.2e}")
    return found


def check(kind: str, names: tuple[str, ...], processes: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ranks(Path(fits.__file__), processes, [str(folder), str(processes), kind, *names])

    def koleo_of_ranks(features: Tensor, eps: float = 1e-8) -> Tensor:
        images = len(features)
        parts = [features[fits.bounds(images, part, processes)] for part in range(processes)]
        return torch.stack([koleo(part, eps) * len(part) for part in parts]).sum() / images

    for user in (dinov2, sys.modules[KoLeo.__module__]):
        monkeypatch.setattr(user, "koleo", koleo_of_ranks)
    found = []
    for name in names:
        ranks = [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(processes)]
        one = fits.fit(name, 1, fits.global_batches(name), kind="loaded" if kind == "loaded" else "ddp")
        assert all(set(values) == set(one) for values in ranks)
        found += differences(name, ranks, one)
    assert found == []


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check("ddp", QUICK, 2, tmp_path, monkeypatch)


@pytest.mark.slow
def test_processes_that_load_their_own_shares_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 43 images in batches of 16, the last of them in shares of 6 and 5."""
    check("loaded", ("dino_like", "byol_like"), 2, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_method_equals_one_process(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check("ddp", tuple(fits.CASES), processes, tmp_path, monkeypatch)


def test_two_processes_with_shards_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded students and teachers: the last layer in the head, the predictor outside the tower."""
    check("sharded", ("byol_like",), 2, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_method_with_shards_equals_one_process(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check("sharded", tuple(fits.CASES), processes, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "names"), [("recomputed", ("byol_like", "dino_like")), ("compiled", ("dino_like",))])
def test_shards_that_are_recomputed_or_compiled_equal_one_process(
    kind: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(kind, names, 2, tmp_path, monkeypatch)


@pytest.mark.slow
def test_shards_in_half_precision_have_the_losses_of_one_process_in_full(tmp_path: Path) -> None:
    names = ("byol_like", "dino_like")
    run_ranks(Path(fits.__file__), 2, [str(tmp_path), "2", "half", *names])
    for name in names:
        ranks = [torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=True) for rank in range(2)]
        one = fits.fit(name, 1, fits.global_batches(name))
        terms = [key for key in one if key.startswith("sum term")]
        assert len(terms) == fits.EPOCHS * len(fits.SIZES)
        for key in terms:
            both = torch.stack([values[key] for values in ranks])
            assert both.dtype == torch.float32
            assert float(both.sum()) == pytest.approx(float(one[key]), rel=1e-2)
        assert all(bool(v.isfinite().all()) for values in ranks for v in values.values())


@pytest.mark.slow
def test_a_sharded_run_continues_with_and_without_shards(tmp_path: Path) -> None:
    """From the end of the first epoch: a last layer that was frozen until then, a queue's place, LARS, a predictor."""
    names = ("dino_like", "moco_like", "byol_like", "byol_like_lars")
    run_ranks(Path(fits.__file__), 2, [str(tmp_path), "2", "resumed", *names])
    found = []
    for name in names:
        ranks = [torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=True) for rank in range(2)]
        whole = fits.global_batches(name)
        one = fits.fit(name, 1, whole)
        assert len(ranks[0]) < len(one)  # the steps of the second epoch only
        after = {key: value for key, value in one.items() if key in ranks[0]}
        found += differences(name, ranks, after)
        found += differences(name, [fits.fit(name, 1, whole, resume=tmp_path / f"{name}.ckpt")], after)
    assert found == []


def test_the_comparison_sees_one_crop_that_differs() -> None:
    whole = fits.global_batches("dino_like")
    one = fits.fit("dino_like", 1, whole)
    whole[1].crops[0][0] = whole[1].crops[0][1]
    other = fits.fit("dino_like", 1, whole)
    names = {line.split()[1] for line in differences("", [other], one)}
    assert {"sum", "gradient", "state"} <= {name.strip(",:") for name in names}
