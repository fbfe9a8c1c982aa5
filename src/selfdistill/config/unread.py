"""What the command line gives and nothing reads is a mistake, and says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from selfdistill.config.errors import UserError, shown
from selfdistill.config.ranges import flatten

HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_"}
# What stands beside a constructor's arguments and is read by the code that calls it, …
_BY_CALLER = {"teacher": {"checkpoint", "trust"}, "trainer": {"activation_checkpointing"}}
# … or by other groups, which have to be asked whether they do.
BESIDE: dict[str, set[str]] = {"data": {"root", "download", "image"}, "method": {"paper"}, **_BY_CALLER}
# What the code reads without a constructor: keys of a command itself, and these.
_READ = re.compile(
    r"\w+|student\.noise|weights\..+|evaluation\..+|data\.image\.classes|objective\..+|(callbacks|logger|protocol)\.\w+|"
    + "|".join(rf"{group}\.{name}" for group, names in _BY_CALLER.items() for name in names)
)
# (key, other key, values of the other with which nothing reads the key)
_UNREAD: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("optimizer.momentum", "optimizer.name", ("adamw",)),
    ("optimizer.betas", "optimizer.name", ("sgd", "lars")),
    ("optimizer.lr_end", "optimizer.schedule", ("constant",)),
    ("optimizer.lr_start", "optimizer.warmup", (0,)),
    ("optimizer.reference_batch", "optimizer.scaling", ("none",)),
    ("optimizer.clip_mode", "optimizer.clip", (None,)),
    ("teacher.momentum_end", "teacher.shape", ("constant",)),
    ("teacher.duration", "teacher.shape", ("constant",)),
    ("teacher.trust", "teacher.checkpoint", (None,)),
    ("accumulate", "trainer.accumulate_grad_batches", (1,)),
    ("schedule.duration", "teacher.shape", ("constant",)),
    ("method.sinkhorn_iterations", "method.centering", ("center",)),
    ("method.center_momentum", "method.centering", ("sinkhorn",)),
    ("method.queue_start", "method.queue_length", (0,)),
    ("callbacks.collapse_monitor.rollbacks", "callbacks.collapse_monitor.action", ("warn", "stop", "raise")),
    ("protocol.linear.learning_rates", "protocol.linear.solver", ("lbfgs",)),
    ("protocol.linear.epochs", "protocol.linear.solver", ("lbfgs",)),
    ("protocol.linear.batch_size", "protocol.linear.solver", ("lbfgs",)),
    ("protocol.linear.l2", "protocol.linear.solver", ("sgd",)),
    ("protocol.linear.max_iter", "protocol.linear.solver", ("sgd",)),
)


def check_read(
    config: DictConfig, plain: Mapping[str, Any], values: Sequence[str], groups: Mapping[str, str]
) -> list[str]:
    """Refuse what the command line gives and nothing reads.

    Args:
        config: what was composed, unresolved.
        plain: the same, resolved.
        values: keys that the command line gives a value.
        groups: choices of groups that it names.

    Returns:
        Lines to warn with: the weight of an objective that there is none of, since a sweep may set it.

    Raises:
        UserError: naming the key and why it is not read.
    """
    leaves, quotes = dict(flatten(plain)), "'"
    for key in (leaf for value in values for leaf in leaves if leaf == value or leaf.startswith(f"{value}.")):
        for unread, other, choices in _UNREAD:
            same = key == "teacher.momentum_end" and leaves[key] == leaves.get("teacher.momentum")
            if key == unread and other in leaves and leaves[other] in choices and not same:
                raise UserError(
                    f"{key}: {shown(leaves[key])} given, but {other}={shown(leaves[other]).strip(quotes)} does not "
                    f"read it; leave it out, or choose another {other}"
                )
        if not _READ.fullmatch(key) and not _argument(plain, key) and not used(config, key):
            raise UserError(f"{key}: {shown(leaves[key])} given, but nothing reads it here{_why(plain)}; leave it out")
    if "schedule" in groups and not any(used(config, key) for key in leaves if key.startswith("schedule.")):
        raise UserError(
            f"schedule: {groups['schedule']!r} given, but this teacher's momentum does not change{_why(plain)}; "
            "leave it out, or choose teacher=ema"
        )
    teacher = plain.get("teacher") or {}
    if groups.get("schedule") in ("cosine", "linear") and teacher.get("momentum_end", 0) is None:
        return [
            f"schedule: the momentum stays at {teacher.get('momentum')}, for teacher.momentum_end is null; set it too"
        ]
    if "objective.weight" in values and len(plain.get("objective", {})) == 1:
        return ["objective.weight: nothing reads it with objective=none; going on without"]
    return []


def used(config: DictConfig, path: str) -> bool:
    """Whether another key takes its value from ``path``: it changes with it."""
    if re.search(r"\.\d+\.", path):  # inside a list, where nothing takes values from
        return False
    probe = config.copy()
    OmegaConf.set_struct(probe, False)
    before = _resolved(config)
    try:
        OmegaConf.update(probe, path, "\N{REPLACEMENT CHARACTER}", force_add=True)
        after = _resolved(probe)
    except InterpolationResolutionError:
        # another key looks into what stands there, or computes with it
        return True
    except (OmegaConfBaseException, ValueError, TypeError):
        # nothing else can stand there
        return False
    others = [{k: v for k, v in leaves.items() if not f"{k}.".startswith(f"{path}.")} for leaves in (before, after)]
    return others[0] != others[1]


def _resolved(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return dict(flatten({str(key): value for key, value in plain.items()}))


def _why(plain: Mapping[str, Any]) -> str:
    """The teacher's kind, which is what mostly decides."""
    kind = str((plain.get("teacher") or {}).get("_target_", "")).rpartition(".")[2]
    return f" (teacher={kind})" if kind in ("frozen", "snapshot", "none") else ""


def _argument(plain: Mapping[str, Any], path: str) -> bool:
    """Whether ``path`` lies in what a constructor is given."""
    node: Any = plain
    for i, name in enumerate(parts := path.split(".")):
        if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
            group = ".".join(parts[:i])
            return name in HYDRA or name not in BESIDE.get(group, set())
        node = node.get(name) if isinstance(node, Mapping) else None
    return False
