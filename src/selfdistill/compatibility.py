"""What goes with what, judged by facts alone.

The same rules hold where a module is built, whoever builds it, and on a composed configuration before torch is loaded
(:mod:`selfdistill.config.pairs`). What does not go is refused in one line that says what to choose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

Domain = Literal["features", "logits"]
Source = Literal["student", "none"]


# The views that make masks of a name.
_MAKERS = {"mask": "ibot, dinov2 or data2vec", "keep": "msn", "context": "ijepa", "targets": "ijepa"}


@dataclass(frozen=True)
class Accepts:
    """What a method works with, beside the needs of its objectives; the default is everything.

    Whether there is a divergence to choose at all is said by the constructor, which takes ``divergence`` or does not.
    In a class body it is written with plain values, since it is also read from there without importing the class.

    Attributes:
        divergences: domains of its divergence; without ``features``, it compares logits.
        teachers: where its teacher may come from.
        tokens: it needs patch tokens of its backbones: a vision transformer.
        masks: names of the masks that it reads from its views.
        has: objectives that are terms of its own loss.
        projects: its head projects whole images, as some objectives need.
    """

    divergences: tuple[Domain, ...] = ("features", "logits")
    teachers: tuple[Source, ...] = ("student", "none")
    tokens: bool = False
    masks: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    projects: bool = True


def check_teacher(method: str, accepts: Accepts, source: str) -> None:
    """Refuse a teacher from where the method's cannot come.

    Raises:
        ValueError: in one line; so do the other functions here.
    """
    if source not in accepts.teachers:
        raise ValueError(
            f"teacher: {source} given to {method}, but it cannot do without one; choose teacher=ema, snapshot or frozen"
        )


def check_objective(name: str, needs: Collection[str], method: str, accepts: Accepts, *, teacher: bool) -> None:
    """Refuse an objective that the method has already, or whose needs it does not meet.

    Args:
        name: the objective's.
        needs: its ``needs``; those of backbone, views and data are not asked here.
        method: the method's name.
        accepts: what it says of itself.
        teacher: whether there is one.
    """
    if name in accepts.has:
        raise ValueError(
            f"objective.{name}: {name} given to {method}, but it has this term already; choose weights.{name}=…"
        )
    if "projections" in needs and not accepts.projects:
        raise ValueError(
            f"objective.{name}: {method} given, which does not project whole images; "
            "choose a method that does, or another objective (objective=koleo)"
        )
    if "teacher" in needs and not teacher:
        raise ValueError(
            f"objective.{name}: no teacher given, from which its targets come; choose teacher=ema, snapshot or frozen"
        )


def refuse_without_tokens(setting: str, backbone: str, reader: str) -> NoReturn:
    """For a backbone, under ``setting``, without the patch tokens that a method or an objective needs."""
    raise ValueError(
        f"{setting}: {backbone} given to {reader}, but it needs patch tokens; "
        "choose a vision transformer (backbone=small_vit, vit_tiny, vit_small, …)"
    )


def check_divergence(method: str, accepts: Accepts, name: str, domain: str) -> None:
    """Refuse a divergence whose domain is not the method's."""
    if domain not in accepts.divergences:
        raise ValueError(
            f"divergence: {name} given to {method}, but it compares {' or '.join(accepts.divergences)}; "
            "choose divergence=cross_entropy, kl, kl_reverse or js"
        )


def refuse_divergence(method: str, name: str) -> NoReturn:
    """For a method whose constructor takes no divergence: any that is given would be left unread."""
    raise ValueError(
        f"divergence: {name} given to {method}, but its loss is fixed; "
        "choose divergence=auto, or a method that takes one (byol_like, ema_teacher, …)"
    )


def check_masks(reader: str, reads: Iterable[str], made: Iterable[str]) -> None:
    """Refuse views that do not make the masks (of names ``made``) that a method or ``objective.<name>`` reads."""
    missing = sorted(set(reads).difference(made))
    if missing:
        choose = next(
            (f"views={views}" for mask, views in _MAKERS.items() if mask in missing), "the method's own views"
        )
        raise ValueError(
            f"views: views without masks ({', '.join(missing)}) given to {reader}, but it reads those masks; "
            f"choose {choose}"
        )


def check_readers_of_masks(
    method: str, accepts: Accepts, needs: Mapping[str, Collection[str]], made: Collection[str]
) -> None:
    """Refuse views that do not make the masks (of names ``made``) that a method and its objectives read.

    Args:
        method: its name.
        accepts: what it says of itself.
        needs: of each of its objectives.
        made: names of the masks.
    """
    check_masks(method, accepts.masks, made)
    for name, wanted in needs.items():
        check_masks(f"objective.{name}", ("mask",) if "masks" in wanted else (), made)


def readers_of_tokens(method: str, accepts: Accepts, needs: Mapping[str, Collection[str]]) -> list[str]:
    """Who needs patch tokens of the backbone: the method, objectives as ``objective.<name>``."""
    objectives = [f"objective.{name}" for name, wanted in needs.items() if "tokens" in wanted]
    return [method, *objectives] if accepts.tokens else objectives


def refuse_backbone(name: str, near: Collection[str]) -> NoReturn:
    """For a name that is no backbone's; ``near`` are the nearest ones that are."""
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"backbone.name: {name!r} given, allowed is small_cnn, small_vit or a timm model{hint}")


def check_weights(given: Iterable[str], known: Collection[str]) -> None:
    """Refuse weights of what is neither a term nor an objective."""
    for name in given:
        if name not in known:
            raise ValueError(f"weights: {name!r} given, allowed is {', '.join(sorted(known))}")


def check_batch_size(batch: int, images: int, processes: int = 1) -> None:
    """Refuse a batch of more images than a process has of the training set."""
    most = images // processes
    if batch > most:
        share = "" if processes == 1 else f", {most} for each of {processes} processes"
        raise ValueError(
            f"data.batch_size: {batch} given, the training set has {images} images{share}; give at most {most}"
        )


def check_precision(precision: str) -> None:
    """Refuse weights in half precision."""
    if precision in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(
            f"trainer.precision: {precision} given, allowed is 32-true, bf16-mixed or 16-mixed: "
            "a half-precision teacher with momentum ≥ 0.996 never moves"
        )
