"""What a run is made of is held against each other before torch is loaded.

Methods, objectives and divergences say of themselves what they need (:mod:`selfdistill.config.facts`); of backbones,
masks and data, those of this package are known. The rules are those of :mod:`selfdistill.compatibility`, which hold
again where things are built: what cannot be told here is refused there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from selfdistill.compatibility import (
    Accepts,
    check_batch_size,
    check_divergence,
    check_objective,
    check_readers_of_masks,
    check_teacher,
    check_weights,
    readers_of_tokens,
    refuse_backbone,
    refuse_divergence,
    refuse_without_tokens,
)
from selfdistill.config.backbones import has_tokens, near_backbones
from selfdistill.config.errors import UserError
from selfdistill.config.facts import fact, term_names
from selfdistill.config.signatures import signature

_OURS = "selfdistill."


def check_fits(plain: Mapping[str, Any]) -> None:
    """Refuse parts that do not go together, and data that cannot be trained on; the latter are not asked for a cost.

    Raises:
        UserError: in one line that says what to choose.
    """
    try:
        if isinstance(target := _target(plain.get("method")), str):
            _check_backbone(plain.get("backbone") or {}, target)
            _check_method(plain, target)
        if not plain.get("cost_only"):
            _check_data(plain.get("data") or {})
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_method(plain: Mapping[str, Any], target: str) -> None:
    method = target.rpartition(".")[2]
    accepts = fact(target, "accepts", {"Accepts": Accepts})
    if not isinstance(accepts, Accepts):
        return
    source = "none" if _target(plain.get("teacher")) == "selfdistill.teacher.TeacherPolicy.none" else "student"
    check_teacher(method, accepts, source)
    _check_divergence(plain, target, accepts)
    nodes = plain.get("objective") or {}
    paths = {key: path for key, node in nodes.items() if isinstance(path := _target(node), str)}
    needs = {str(fact(p, "name") or key): fact(p, "needs") or frozenset() for key, p in paths.items()}
    for name, wanted in needs.items():
        check_objective(name, wanted, method, accepts, teacher=source != "none")
    backbone = plain.get("backbone") or {}
    readers = readers_of_tokens(method, accepts, needs)
    masks = (plain.get("views") or {}).get("masks", {})
    ours = str(_target(masks)).startswith(_OURS)
    made = () if masks is None else fact(str(_target(masks)), "makes") if ours else None
    problems: list[str] = []  # one command mends both
    with _noted(problems):
        if readers and _known(backbone) and has_tokens(backbone["name"]) is False:
            refuse_without_tokens("backbone", backbone["name"], readers[0])
    with _noted(problems):
        if isinstance(made, tuple):
            check_readers_of_masks(method, accepts, needs, made)
    if problems:
        raise ValueError("; and ".join(problems))
    terms = [term_names(path) for path in (target, *paths.values())]
    if None not in terms:
        check_weights(plain.get("weights") or {}, {*paths, *(name for names in terms for name in names or ())})


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        problems.append(str(error))


def _check_divergence(plain: Mapping[str, Any], target: str, accepts: Accepts) -> None:
    path = _target(plain.get("divergence"))
    taken = signature(target)
    if not isinstance(path, str) or taken is None or taken.open:
        return
    method, name = target.rpartition(".")[2], path.rpartition(".")[2]
    if "divergence" not in taken.parameters:
        refuse_divergence(method, name)
    domain = fact(path, "domain")
    if isinstance(domain, str):
        check_divergence(method, accepts, name, domain)


def _known(backbone: Mapping[str, Any]) -> bool:
    """Whether a name says which network it is: anything else may make of it what it likes."""
    return _target(backbone) == "selfdistill.networks.build_backbone" and isinstance(backbone.get("name"), str)


def _check_backbone(backbone: Mapping[str, Any], method: str) -> None:
    # the module of the user's own method may register networks with timm
    if _known(backbone) and method.startswith(_OURS) and (near := near_backbones(backbone["name"])):
        refuse_backbone(backbone["name"], near)


def _check_data(data: Mapping[str, Any]) -> None:
    source = data.get("source") or {}
    target = str(_target(source))
    if not target.startswith(_OURS):
        return
    if "root" in source and source["root"] is None:
        raise ValueError("data.root: null given, allowed is the folder that holds the images; set data.root=<folder>")
    size = source.get("train") if target == "selfdistill.data.Shapes" else fact(target, "num_train")
    batch, limit = data.get("batch_size"), data.get("limit")
    if isinstance(size, int) and isinstance(batch, int):
        check_batch_size(batch, min(size, limit) if isinstance(limit, int) else size)


def _target(node: Any) -> Any:
    return node.get("_target_") if isinstance(node, Mapping) else None
