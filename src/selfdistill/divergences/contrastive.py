"""Contrast: how well a query finds its own key among the keys of other images.

As in `functional`: one number a sample, computed in float32 (float64 inputs stay float64) with autocast off.
Gradients flow to all arguments: where the teacher should get none, the caller detaches it.

Shapes: N images of this rank, K negatives, P projections.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.distributed import all_gather_cat, all_gather_cat_grad, rank
from selfdistill.divergences.functional import as_pair, check_positive
from selfdistill.divergences.queued import queue_logsumexp

__all__ = ["info_nce", "info_nce_in_batch", "info_nce_queue"]


def info_nce(positive: Tensor, negatives: Tensor, *, temperature: float) -> Tensor:
    """−log(e^(s⁺/T) / (e^(s⁺/T) + Σ_k e^(s_k/T))), in nats (MoCo, arXiv 1911.05722, eq. 1).

    Args:
        positive: s⁺ [...], similarity of each query to its own key.
        negatives: s_k [..., K], its similarities to other keys, K >= 1.
        temperature: T > 0. MoCo v2 uses .2.

    Returns:
        [...], >= 0.

    Raises:
        ValueError: The shapes do not fit, or the temperature is out of range.
    """
    check_positive("temperature", temperature)
    if negatives.ndim != positive.ndim + 1 or negatives.shape[:-1] != positive.shape or negatives.shape[-1] == 0:
        raise ValueError(
            "positive must have shape [...] and negatives [..., K >= 1], "
            f"got {list(positive.shape)} and {list(negatives.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(positive.dtype, negatives.dtype), torch.float32)
    positive, negatives = positive.to(dtype), negatives.to(dtype)
    # The same as the cross-entropy of [s⁺, s_1, …, s_K] with the label 0, without building that tensor.
    return F.softplus((negatives / temperature).logsumexp(-1) - positive / temperature)


def info_nce_queue(queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """`info_nce` of queries and their own keys against a queue, whose similarities are never all in memory.

    Args:
        queries: q [..., P] unit vectors.
        keys: k [..., P] unit vectors.
        queue: n [K, P] unit vectors, which get no gradient.
        temperature: T > 0.

    Returns:
        [...], >= 0.

    Raises:
        ValueError: The shapes do not fit, or the temperature is out of range.
    """
    queries, keys = as_pair(queries, keys)
    negatives = queue_logsumexp(queries, queue, temperature=temperature)
    with torch.autocast(queries.device.type, enabled=False):
        return F.softplus(negatives - (queries * keys).sum(-1) / temperature)


def info_nce_in_batch(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """−log(e^(q_i·k_i/T) / Σ_j e^(q_i·k_j/T)), j over the images of all ranks (MoCo v3, arXiv 2104.02057, eq. 1).

    The same for an image whatever rank it is on, also where ranks hold different numbers of images. All ranks
    must call it equally often.

    Args:
        queries: q [..., N, P] unit vectors; leading dimensions are contrasts of their own.
        keys: k [..., N, P] unit vectors; those of other ranks get gradients too (as DDP expects them, see
            `selfdistill.distributed`), unless they need none, as a teacher's.
        temperature: T > 0. MoCo v3 uses 1 for a ResNet-50 and .2 for a ViT.

    Returns:
        [..., N].

    Raises:
        ValueError: The shapes do not fit, or the temperature is out of range.
    """
    check_positive("temperature", temperature)
    if queries.ndim < 2:
        raise ValueError(f"queries must have shape [..., images, projections], got {list(queries.shape)}")
    queries, keys = as_pair(queries, keys)
    images = queries.shape[-2]
    with torch.autocast(queries.device.type, enabled=False):
        everyone = all_gather_cat_grad(keys.movedim(-2, 0)).movedim(0, -2)
        counts = all_gather_cat(torch.full((1,), images, device=keys.device))
        own = counts[: rank()].sum() + torch.arange(images, device=keys.device)
        log_p = F.log_softmax(queries @ everyone.mT / temperature, dim=-1)
    return -log_p.gather(-1, own.expand(queries.shape[:-1]).unsqueeze(-1)).squeeze(-1)
