"""Features to evaluate: extracted with the network left as it was found, checked, and normalised."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

# Entries of the largest temporary of a protocol: 128 MiB in float32, whatever the data set.
CHUNK = 2**25


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Put ``module`` in eval mode, then give back every submodule's own mode and the random state.

    A submodule that stood in eval mode inside a training network (a teacher, a frozen batch norm) stands
    in eval mode afterwards too. The random state is that of torch (CPU, and the CUDA devices that hold
    parameters), numpy and ``random``: a run draws the same numbers whether it was evaluated or not.
    """
    modes = [(child, child.training) for child in module.modules()]
    devices = sorted({p.device.index for p in module.parameters() if p.is_cuda})
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            module.eval()
            yield module
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for child, training in modes:
            # Not train(training): that sets all children, and modules may override it.
            child.training = training


@torch.no_grad()
def extract_features(
    embed: Callable[[Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Embed a labelled data set. The caller sets eval mode, see :func:`evaluating`.

    Args:
        embed: images ``[B, …]`` to features ``[B, D]``.
        loader: batches of (images, labels ``[B]``).
        device: where ``embed`` computes.

    Returns:
        Features ``[N, D]`` in float32 and labels ``[N]`` in int64, both on the CPU, in the loader's order.

    Raises:
        TypeError: a batch is not a pair of images and labels.
        ValueError: the loader gave nothing, or ``embed`` something other than ``[B, D]``.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or batch[1] is None:
            raise TypeError(
                f"loader gave a {type(batch).__name__}, not (images, labels): evaluation needs labelled data"
            )
        images, target = batch
        output = embed(images.to(device, non_blocking=True))
        if output.ndim != 2 or len(output) != len(images):
            raise ValueError(
                f"embed returned shape {tuple(output.shape)} for {len(images)} images, not "
                f"({len(images)}, D): pool tokens or maps first"
            )
        features.append(output.float().cpu())
        labels.append(torch.as_tensor(target).long().cpu())
    if not features:
        raise ValueError("loader gave no batch: evaluation needs at least one image")
    return torch.cat(features), torch.cat(labels)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` ``[…, D]`` at Euclidean length 1, in float32 or better; zero rows stay zero.

    Rows are scaled by their largest entry first, since squares of entries beyond 1e±19 leave float32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    tiny = torch.finfo(x.dtype).tiny
    largest = torch.maximum(x.detach().amax(-1, keepdim=True), -x.detach().amin(-1, keepdim=True))
    x = x / largest.clamp_min(tiny)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(tiny)


def feature_rows(name: str, features: Tensor, like: Tensor | None = None) -> Tensor:
    """Check features ``[N, D]``; detach them and bring them to float32 or better.

    A row with a value that is not finite becomes the zero vector, which has no direction: a network that
    has diverged scores at chance and the evaluation of the others goes on.

    Args:
        name: how errors call them ("bank", "queries", …).
        features: ``[N, D]``, any floating type.
        like: features that these must match in D, and whose device and type they take.

    Raises:
        ValueError: wrong shapes or no rows.
    """
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"{name} must be [N, D], N and D ≥ 1, got {tuple(features.shape)}: flatten images")
    if like is not None and features.shape[1] != like.shape[1]:
        raise ValueError(
            f"{name} have {features.shape[1]} dimensions, those to compare with {like.shape[1]}: "
            "take both from one network"
        )
    like = features if like is None else like
    features = features.detach().to(like.device, torch.promote_types(like.dtype, torch.float32))
    if features.sum().isfinite():
        return features
    return torch.where(features.isfinite().all(1, keepdim=True), features, 0.0)


def labelled_rows(name: str, features: Tensor, labels: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`feature_rows`, and class indices ``[N]`` ≥ 0 as int64 on their device.

    Raises:
        TypeError: labels that are not integers.
        ValueError: wrong shapes, no rows, or negative labels.
    """
    features = feature_rows(name, features, like)
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name}: labels have shape {tuple(labels.shape)}, not ({len(features)},)")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name}: labels are {labels.dtype}, not integers: pass class indices")
    if labels.min() < 0:
        raise ValueError(f"{name}: label {int(labels.min())} is negative: drop images without a label")
    return features, labels.to(features.device, torch.int64)
