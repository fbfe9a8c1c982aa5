"""The parts that a method is built from, held against what it accepts (:mod:`selfdistill.compatibility`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from selfdistill.compatibility import (
    Accepts,
    check_divergence,
    check_objective,
    check_readers_of_masks,
    check_teacher,
    readers_of_tokens,
    refuse_without_tokens,
)
from selfdistill.divergences import Divergence, as_divergence
from selfdistill.heads import NoHead
from selfdistill.networks import Tower
from selfdistill.teacher import TeacherPolicy

if TYPE_CHECKING:
    from selfdistill.methods.base import SelfDistillModule


def check_parts(
    method: str, accepts: Accepts, student: Tower, teacher: TeacherPolicy, objectives: Mapping[str, nn.Module]
) -> None:
    """Refuse a backbone, a teacher or an objective that a method does not work with.

    Raises:
        ValueError: in one line that says what to choose.
    """
    check_teacher(method, accepts, teacher.source)
    needs = _needs(objectives)
    accepts = replace(accepts, projects=accepts.projects and not isinstance(student.head, NoHead))
    for name, wanted in needs.items():
        check_objective(name, wanted, method, accepts, teacher=teacher.source != "none")
    readers = readers_of_tokens(method, accepts, needs)
    for setting, tower in (("backbone", student), ("teacher.network", teacher.network)):
        if readers and isinstance(tower, Tower) and not tower.backbone.has_tokens:
            refuse_without_tokens(setting, type(tower.backbone).__name__, readers[0])


def accepted_divergence(
    method: str, accepts: Accepts, divergence: Divergence | Callable[[Tensor, Tensor], Tensor]
) -> Divergence:
    """``divergence`` as a module.

    Raises:
        ValueError: its domain is not the method's.
    """
    made = as_divergence(divergence)
    check_divergence(method, accepts, type(made).__name__, made.domain)
    return made


def check_read_masks(module: SelfDistillModule[Any, Any], made: Mapping[str, Tensor]) -> None:
    """Refuse views whose recipe makes other masks than the method and its objectives read.

    Raises:
        ValueError: naming the reader and the masks.
    """
    check_readers_of_masks(type(module).__name__, module.accepts, _needs(dict(module.objectives.items())), list(made))


def _needs(objectives: Mapping[str, nn.Module]) -> dict[str, frozenset[str]]:
    return {getattr(o, "name", key): getattr(o, "needs", frozenset()) for key, o in objectives.items()}
