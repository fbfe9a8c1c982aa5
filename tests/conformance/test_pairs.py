"""Any to any: what goes together trains, what does not is refused, and docs/compatibility.md says which is which.

A new method, divergence, teacher or objective needs no edit here.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from trainers import bare_trainer

from selfdistill.assembly import build_data
from selfdistill.config import CONF, UserError, resolved
from selfdistill.config.pairs import check_fits
from selfdistill.data import DataModule
from selfdistill.objectives import Objective

Pair = tuple[tuple[str, str], tuple[str, str]]
Row = dict[str, str]


def _docs() -> Any:
    spec = importlib.util.spec_from_file_location("compatibility", Path(__file__).parents[2] / "docs/compatibility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = _docs()
LEVELS = {group: docs.choices(group) for group in ("method", "divergence", "teacher", "objective")}
LEVELS["backbone"] = ["small_cnn", "small_vit"]
LOGITS = {"cross_entropy", "js", "kl", "kl_reverse"}
# the views of one method have no masks of the kind that another's objective reads
OTHER_MASKS = {("ijepa_like", "masked_pixels"), ("ijepa_like", "masked_tokens")}
UNPROJECTED = {"data2vec_like", "ijepa_like"}


@cache
def method_class(name: str) -> Any:
    return get_class(OmegaConf.load(CONF / "method" / f"{name}.yaml").method._target_)


@cache
def needs(objective: str) -> frozenset[str]:
    if objective == "none":
        return frozenset()
    kind = get_class(OmegaConf.load(CONF / "objective" / f"{objective}.yaml")[objective]._target_)
    assert issubclass(kind, Objective)
    return kind.needs


def setting_refused(pair: Pair) -> str | None:
    """What the declarations say of two choices: the setting that is refused, or None."""
    row = dict(pair)
    method, objective = row.get("method"), row.get("objective", "none")
    tokenless, alone = row.get("backbone") == "small_cnn", row.get("teacher") == "none"
    if "teacher" in needs(objective) and alone:
        return f"objective.{objective}"
    if "tokens" in needs(objective) and tokenless:
        return "backbone"
    if method is None:
        return None
    accepts, divergence = method_class(method).accepts, row.get("divergence", "auto")
    if divergence != "auto":
        takes = "divergence" in inspect.signature(method_class(method)).parameters
        if not takes or (accepts.divergences == ("logits",) and divergence not in LOGITS):
            return "divergence"
    if alone and "none" not in accepts.teachers:
        return "teacher"
    if tokenless and accepts.tokens:
        return "backbone"
    if ("projections" in needs(objective) and method in UNPROJECTED) or objective in accepts.has:
        return f"objective.{objective}"
    return "views" if (method, objective) in OTHER_MASKS else None


def all_pairs() -> list[Pair]:
    return [((a, x), (b, y)) for a, b in combinations(LEVELS, 2) for x, y in product(LEVELS[a], LEVELS[b])]


REFUSED = {pair: setting for pair in all_pairs() if (setting := setting_refused(pair)) is not None}


def pairs_of(row: Row) -> list[Pair]:
    items = [(group, row[group]) for group in LEVELS if group in row]
    return list(combinations(items, 2))


def allowed(row: Row) -> bool:
    return not any(pair in REFUSED for pair in pairs_of(row))


def cover() -> list[Row]:
    """Rows of allowed choices in which every allowed pair stands once at least: greedy, the same every time."""
    left = {pair: None for pair in all_pairs() if pair not in REFUSED}
    rows: list[Row] = []
    while left:
        first = next(iter(left))
        row = dict(first)
        for group, names in LEVELS.items():
            if group in row:
                continue
            fits = [{**row, group: name} for name in names if allowed({**row, group: name})]
            if not fits:
                break
            row = max(fits, key=lambda r: sum(pair in left for pair in pairs_of(r)))
        if len(row) < len(LEVELS):
            # these two go together, but with nothing else
            raise AssertionError(f"no row for {first}")
        rows.append({group: row[group] for group in LEVELS})
        for pair in pairs_of(row):
            left.pop(pair, None)
    return rows


@cache
def digits(method: str, views: str | None) -> DataModule:
    return build_data(docs.variant(method, views=views))


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.mark.parametrize("row", cover(), ids=lambda row: "-".join(row.values()))
def test_what_goes_together_trains(row: Row, tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    module, views = docs.build(**row)
    losses = Losses()
    trainer = bare_trainer(
        tmp_path, losses, use_distributed_sampler=False, max_steps=2, max_epochs=-1, limit_val_batches=0
    )
    trainer.fit(module, digits(row["method"], views))
    assert len(losses.values) == 2
    assert torch.tensor(losses.values).isfinite().all()


@pytest.mark.parametrize("pair", list(REFUSED), ids=lambda pair: "-".join(choice for _, choice in pair))
def test_what_does_not_go_together_is_refused(pair: Pair) -> None:
    row = docs.suited(**dict(pair))
    with pytest.raises(ValueError) as caught:
        docs.build(row.pop("method", "byol_like"), **row)
    found = docs.REFUSAL.fullmatch(str(caught.value))
    assert found is not None, str(caught.value)
    assert found["setting"] == REFUSED[pair]


@pytest.mark.parametrize("pair", list(REFUSED), ids=lambda pair: "-".join(choice for _, choice in pair))
def test_it_is_refused_before_torch_is_loaded_too(pair: Pair) -> None:
    row = docs.suited(**dict(pair))
    # views are the last to be said no to: masked ones, where there is a choice
    views = None if REFUSED[pair] == "views" or row.get("method") == "ijepa_like" else "ibot"
    config = docs.variant(row.pop("method", "byol_like"), views=views, **row)
    with pytest.raises(UserError) as caught:
        check_fits(resolved(config))
    found = docs.REFUSAL.fullmatch(str(caught.value))
    assert found is not None, str(caught.value)
    assert found["setting"] == REFUSED[pair]


@pytest.mark.parametrize("row", cover(), ids=lambda row: "-".join(row.values()))
def test_what_goes_together_is_let_through(row: Row) -> None:
    _, views = docs.build(**row)
    check_fits(resolved(docs.variant(row.pop("method"), views=views, **row)))


def test_the_page_is_current() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run: python docs/compatibility.py"
