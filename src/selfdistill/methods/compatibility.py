"""What a method works with. What it does not is refused where it is built, in one line that says what to choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from selfdistill.divergences import Divergence, as_divergence
from selfdistill.divergences.modules import Domain
from selfdistill.networks import Tower
from selfdistill.teacher.policy import Source, TeacherPolicy

if TYPE_CHECKING:
    from selfdistill.methods.base import SelfDistillModule


@dataclass(frozen=True)
class Accepts:
    """What a method works with, beside the needs of its objectives; the default is everything.

    Whether there is a divergence to choose at all is said by the constructor, which takes ``divergence`` or does not.

    Attributes:
        divergences: domains of its divergence; without ``features``, it compares logits.
        teachers: where its teacher may come from.
        tokens: it needs patch tokens of its backbones: a vision transformer.
        masks: names of the masks that it reads from its views.
        has: objectives that are terms of its own loss.
    """

    divergences: tuple[Domain, ...] = ("features", "logits")
    teachers: tuple[Source, ...] = ("student", "none")
    tokens: bool = False
    masks: tuple[str, ...] = ()
    has: tuple[str, ...] = ()


def check_parts(
    method: str, accepts: Accepts, student: Tower, teacher: TeacherPolicy, objectives: Mapping[str, nn.Module]
) -> None:
    """Refuse a backbone, a teacher or an objective that a method does not work with.

    Raises:
        ValueError: in one line; so do the other functions here.
    """
    if teacher.source not in accepts.teachers:
        raise ValueError(
            f"teacher: {teacher.source} given to {method}, but it cannot do without one; "
            "choose teacher=ema, snapshot or frozen"
        )
    for name in (getattr(objective, "name", key) for key, objective in objectives.items()):
        if name in accepts.has:
            raise ValueError(
                f"objective.{name}: {name} given to {method}, but it has this term already; choose weights.{name}=…"
            )
    if accepts.tokens:
        for setting, tower in (("backbone", student), ("teacher.network", teacher.network)):
            if isinstance(tower, Tower) and not tower.backbone.has_tokens:
                raise ValueError(
                    f"{setting}: {type(tower.backbone).__name__} given to {method}, but it needs patch tokens; "
                    "choose a vision transformer (backbone=small_vit, vit_tiny, vit_small, …)"
                )


def accepted_divergence(
    method: str, accepts: Accepts, divergence: Divergence | Callable[[Tensor, Tensor], Tensor]
) -> Divergence:
    """``divergence`` as a module, refused where its domain is not the method's."""
    made = as_divergence(divergence)
    if made.domain not in accepts.divergences:
        raise ValueError(
            f"divergence: {type(made).__name__} given to {method}, but it compares {' or '.join(accepts.divergences)}; "
            "choose cross_entropy, kl, kl_reverse or js"
        )
    return made


def refuse_divergence(method: str, divergence: object) -> None:
    """For a method whose constructor takes no divergence: any that is given would be left unread."""
    if divergence is not None:
        raise ValueError(
            f"divergence: {type(divergence).__name__} given to {method}, but its loss is fixed; "
            "choose divergence=auto, or a method that takes one (byol_like, ema_teacher, …)"
        )


def check_masks(module: SelfDistillModule[Any, Any], made: Iterable[str]) -> None:
    """Refuse views whose recipe does not make the masks (of names ``made``) that the method and its objectives read."""
    readers = {type(module).__name__: module.accepts.masks}
    for name, objective in module.objectives.items():
        needs: frozenset[str] = getattr(objective, "needs", frozenset())
        readers[f"objective.{name}"] = ("mask",) if "masks" in needs else ()
    for reader, masks in readers.items():
        missing = sorted(set(masks).difference(made))
        if missing:
            instead = "the method's own views" if reader == type(module).__name__ else "views=ibot, dinov2 or data2vec"
            raise ValueError(
                f"views: no masks {', '.join(missing)} given to {reader}, but it reads such masks; choose {instead}"
            )


def check_precision(precision: str) -> None:
    """Refuse weights in half precision."""
    if precision in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(
            f"trainer.precision: {precision} given, allowed is 32-true, bf16-mixed or 16-mixed: "
            "a half-precision teacher with momentum ≥ 0.996 never moves"
        )
