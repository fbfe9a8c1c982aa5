"""Costs as a person reads them, and as ``summary.json`` keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfdistill.costs.step import StepCost
from selfdistill.text_table import aligned, duration
from selfdistill.views import ViewRecipe

_PARTS = ("student", "beside", "teacher")


def cost_lines(cost: StepCost, *, optimizer: str, recipe: ViewRecipe) -> str:
    """The table that stands before a run.

    Args:
        cost: of one batch in one process.
        optimizer: its name.
        recipe: of its views.
    """
    models = "2·M_model" if cost.teacher.bytes else "M_model"
    rows = [
        ["student", _count(cost.student.parameters), binary(cost.student.bytes)],
        ["trained beside it", _count(cost.beside.parameters), binary(cost.beside.bytes)],
        ["teacher", _count(cost.teacher.parameters), binary(cost.teacher.bytes)],
        [state_label(cost.state_of), "", binary(cost.state)],
        [optimizer, "", binary(cost.optimizer)],
        [f"= {models} + M_optimizer", "", binary(cost.model_total)],
        ["gradients", "", binary(cost.gradients)],
        ["crops", "", binary(cost.views)],
        ["activations", "", binary(cost.activations)],
        ["passing tensors", "", binary(cost.passing)],
        ["= peak of a step", "", binary(cost.peak)],
    ]
    memory = aligned([r for r in rows if r[2] != "0 B"], ["a step of " + _images(cost.batch), "parameters", "memory"])
    formula = f"2·T_forward + T_backward is {decimal(cost.formula_flops)}FLOP"
    parts = {"teacher": cost.teacher_flops, "student": cost.student_flops, "loss": cost.loss_flops,
             "backward": cost.backward_flops}  # fmt: skip
    said = " + ".join(f"{name} {decimal(flops)}" for name, flops in parts.items() if flops)
    lines = [memory, f"{decimal(cost.flops)}FLOP: {said}; {formula}", _seen(recipe, cost)]
    if cost.micro_batch < cost.batch:
        lines.append(
            f"networks see {_images(cost.micro_batch)} at a time, and again for the gradient (accumulate=exact): "
            f"activations are those of {_images(cost.micro_batch)} beside the outputs of all"
        )
    return "\n".join(lines)


def measured_line(cost: StepCost, measured: dict[str, Any]) -> str:
    """The line after a run: what was measured beside what was predicted; empty where nothing was."""
    said = []
    seconds, peak = measured["step_seconds"], measured["peak_bytes"]
    if seconds:
        said.append(f"{duration(seconds)}, {decimal(cost.flops / seconds)}FLOP/s")
    if peak:
        grown = ", the process's own needs included" if measured["peak_of"] == "process" else ""
        said.append(f"peak {binary(peak)} measured{grown}, {binary(cost.peak)} predicted")
    return f"a step of {_images(cost.batch)}: {'; '.join(said)}" if said else ""


def as_plain(cost: StepCost) -> dict[str, Any]:
    """For ``summary.json``: ``batch``, ``parameters``, ``bytes``, ``state_of`` and ``flops``."""
    return {
        "batch": cost.batch,
        "parameters": {part: getattr(cost, part).parameters for part in _PARTS},
        "bytes": {part: getattr(cost, part).bytes for part in _PARTS}
        | {name: getattr(cost, name) for name in ("state", "optimizer", "model_total", "gradients", "views",
                                                  "activations", "passing", "total", "peak")},
        "state_of": list(cost.state_of),
        "flops": {"teacher": cost.teacher_flops, "student": cost.student_flops, "loss": cost.loss_flops,
                  "backward": cost.backward_flops, "step": cost.flops, "formula": cost.formula_flops},
    }  # fmt: skip


def state_label(holders: Sequence[str]) -> str:
    """What the buffers outside of student and teacher are called: by what holds them."""
    return f"buffers of {', '.join(holders)}"


def binary(size: float) -> str:
    """Bytes in KiB, MiB, GiB or TiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB"


def decimal(number: float) -> str:
    """A number with M, G, T or P before its unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:,.3g} P"


def _count(number: int) -> str:
    return f"{number:,}"


def _images(batch: int) -> str:
    return f"{batch:,} image{'s' * (batch != 1)}"


def _seen(recipe: ViewRecipe, cost: StepCost) -> str:
    """Which crops student and teacher see, and what that makes of the FLOPs."""
    crops = {}
    for role in ("student", "teacher"):
        sizes = [spec.size for spec in recipe.flat if role in spec.roles]
        crops[role] = " + ".join(f"{sizes.count(size)}×{size} px" for size in dict.fromkeys(sizes))
    masked = "" if recipe.masks is None else f" under {type(recipe.masks).__name__}"
    said = f"the student sees {crops['student']}{masked}"
    if not cost.teacher_flops:
        return f"{said}; there is no teacher"
    return (
        f"{said}, {cost.student_flops / cost.teacher_flops:.2f} × the FLOPs of the teacher, who sees {crops['teacher']}"
    )
