"""What a step takes by the two formulas, counted part by part, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.config import flatten
from selfdistill.costs.table import state_label
from selfdistill.report.tables import cells
from selfdistill.text_table import duration

_FORMULAS = (
    "<p class=formula>memory = 2·M<sub>model</sub> + M<sub>optimizer</sub> <span class=look>student and teacher, and "
    "the optimizer's state; activations come on top</span></p>"
    "<p class=formula>time of a step = 2·T<sub>forward</sub> + T<sub>backward</sub> <span class=look>both networks "
    "look, only the student learns</span></p>"
)
# Of what a run stores: where it stands, and what it is called; a strong row sums up those above it.
_MEMORY = (
    ("bytes.student", "student"),
    ("bytes.beside", "trained beside it"),
    ("bytes.teacher", "teacher"),
    ("bytes.state", "buffers of others"),
    ("bytes.optimizer", "optimizer"),
    ("bytes.model_total", "<b>= 2·M<sub>model</sub> + M<sub>optimizer</sub></b>"),
    ("bytes.gradients", "gradients"),
    ("bytes.views", "crops"),
    ("bytes.activations", "activations"),
    ("bytes.passing", "passing tensors"),
    ("bytes.peak", "<b>peak of a step, predicted</b>"),
)
_WORK = (
    ("flops.teacher", "teacher, forward"),
    ("flops.student", "student, forward"),
    ("flops.loss", "loss"),
    ("flops.backward", "backward"),
    ("flops.step", "<b>a step, counted</b>"),
    ("flops.formula", "<b>2·T<sub>forward</sub> + T<sub>backward</sub></b>"),
)


def cost(summary: Mapping[str, Any]) -> str:
    """The formulas beside what the run counted and measured under ``cost``, and its time; empty without any."""
    counted = cost_rows(summary)
    parts = [cells([], rows, numbers=True) for rows in counted.values() if rows]
    return f"{_FORMULAS}<div class=beside>{''.join(parts)}</div>" if parts else ""


def cost_rows(summary: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Name and value, as HTML, of what a step stores and computes and what the run took: memory, work, time."""
    stored = summary.get("cost") or {}
    predicted, measured = (dict(flatten(stored.get(part) or {})) for part in ("predicted", "measured"))
    names = dict(_MEMORY) | {"bytes.state": state_label((stored.get("predicted") or {}).get("state_of") or ["others"])}
    memory = [[name, _said(predicted[key])] for key, name in names.items() if predicted.get(key)]
    if not predicted.get("bytes.teacher"):
        memory = [[name.replace("2·M", "M"), size] for name, size in memory]
    if measured.get("peak_bytes"):
        whole = ", the process's own needs included" if measured.get("peak_of") == "process" else ""
        memory.append([f"<b>peak of a step, measured</b>{whole}", _said(measured["peak_bytes"])])
    work = [[name, f"{predicted[key] / 1e9:,.3f} GFLOP"] for key, name in _WORK if predicted.get(key)]
    if seconds := measured.get("step_seconds"):
        work.append(["<b>a step, measured</b> (median)", duration(seconds)])
        if predicted.get("flops.step"):
            work.append(["that is", f"{predicted['flops.step'] / seconds / 1e9:,.1f} GFLOP/s"])
    return {"memory": memory, "work": work, "time": _spent(summary)}


def _said(size: float) -> str:
    return f"{size / 2**20:,.2f} MiB" if size >= 2**20 / 100 else f"{size / 2**10:,.2f} KiB"


def _spent(summary: Mapping[str, Any]) -> list[list[str]]:
    """What the whole run took."""
    seconds, steps = summary.get("seconds", {}).get("train"), summary.get("optimizer_steps")
    rows = []
    if seconds is not None:
        rows.append(["training", duration(seconds)])
        waited = summary["seconds"].get("data_wait")
        if waited is not None and seconds:
            rows.append(["of it waiting for data", f"{waited / seconds:.1%}"])
    if steps:
        rows.append(["optimizer steps", f"{steps:,}"])
    if seconds is not None and steps:
        rows.append(["a step, validation included", duration(seconds / steps)])
    if summary.get("unreadable_images"):
        rows.append(["unreadable images, skipped", f"{summary['unreadable_images']:,}"])
    return rows
