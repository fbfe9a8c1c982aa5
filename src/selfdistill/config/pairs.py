"""Choices of different groups that do not go together are refused before torch is loaded.

Methods, objectives, divergences and masks say of themselves what they need; it is read from their source. What cannot
be told from there is left to the constructors, which apply the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.compatibility import (
    Accepts,
    check_divergence,
    check_masks,
    check_objective,
    check_teacher,
    masks_read,
    refuse_divergence,
    refuse_without_tokens,
)
from selfdistill.config.errors import UserError
from selfdistill.config.facts import fact, has_tokens, near_backbones, term_names
from selfdistill.config.signatures import signature


def check_pairs(plain: Mapping[str, Any]) -> None:
    """Refuse parts that do not go together.

    Raises:
        UserError: in one line that says what to choose.
    """
    try:
        _check_backbone(plain)
        if isinstance(target := _target(plain.get("method")), str):
            _check_method(plain, target)
        _check_data(plain.get("data") or {})
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_method(plain: Mapping[str, Any], target: str) -> None:
    method = target.rpartition(".")[2]
    accepts = fact(target, "accepts", {"Accepts": Accepts})
    if not isinstance(accepts, Accepts):
        return
    source = "none" if str(_target(plain.get("teacher"))).endswith(".TeacherPolicy.none") else "student"
    check_teacher(method, accepts, source)
    _check_divergence(plain, target, accepts)
    objectives = {
        str(fact(path, "name") or key): fact(path, "needs") or frozenset() for key, path in _objectives(plain).items()
    }
    for name, needs in objectives.items():
        check_objective(name, needs, method, accepts, teacher=source != "none")
    backbone = (plain.get("backbone") or {}).get("name")
    readers = [method] if accepts.tokens else []
    readers += [f"objective.{name}" for name, needs in objectives.items() if "tokens" in needs]
    if readers and isinstance(backbone, str) and has_tokens(backbone) is False:
        refuse_without_tokens("backbone", backbone, readers[0])
    masks = (plain.get("views") or {}).get("masks", {})
    made = () if masks is None else fact(str(_target(masks)), "makes")
    if isinstance(made, tuple):
        check_masks(method, accepts.masks, made)
        for name, needs in objectives.items():
            check_masks(f"objective.{name}", masks_read(needs), made)
    _check_weights(plain, target)


def _check_divergence(plain: Mapping[str, Any], target: str, accepts: Accepts) -> None:
    path = _target(plain.get("divergence"))
    taken = signature(target)
    if not isinstance(path, str) or taken is None:
        return
    method, name = target.rpartition(".")[2], path.rpartition(".")[2]
    if "divergence" not in taken.parameters:
        refuse_divergence(method, name)
    domain = fact(path, "domain")
    if isinstance(domain, str):
        check_divergence(method, accepts, name, domain)


def _check_weights(plain: Mapping[str, Any], target: str) -> None:
    """Weights are of terms, or of objectives."""
    objectives = _objectives(plain)
    stated = [term_names(path) for path in (target, *objectives.values())]
    if any(names is None for names in stated):
        return
    known = {*objectives, *(name for names in stated for name in names or ())}
    for name in plain.get("weights") or {}:
        if name not in known:
            raise ValueError(f"weights: {name!r} given, allowed is {', '.join(sorted(known))}")


def _check_backbone(plain: Mapping[str, Any]) -> None:
    name = (plain.get("backbone") or {}).get("name")
    near = near_backbones(name) if isinstance(name, str) else None
    if near is not None:
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"backbone.name: {name!r} given, allowed is small_cnn, small_vit or a timm model{hint}")


def _check_data(data: Mapping[str, Any]) -> None:
    """A folder has to be given, and a batch is no larger than the training set, where that is known."""
    source = data.get("source") or {}
    if "root" in source and source["root"] is None:
        raise ValueError("data.root: not given, allowed is the folder that holds the images; set data.root=<folder>")
    size = source.get("train", fact(str(source.get("_target_")), "num_train"))
    batch, limit = data.get("batch_size"), data.get("limit")
    if isinstance(size, int) and isinstance(batch, int):
        most = min(size, limit) if isinstance(limit, int) else size
        if batch > most:
            raise ValueError(f"data.batch_size: {batch} given, the training set has {most} images; give at most {most}")


def _objectives(plain: Mapping[str, Any]) -> dict[str, str]:
    nodes = plain.get("objective") or {}
    return {key: path for key, node in nodes.items() if isinstance(path := _target(node), str)}


def _target(node: Any) -> Any:
    return node.get("_target_") if isinstance(node, Mapping) else None
