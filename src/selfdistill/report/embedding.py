"""Features as points in the plane: principal components, and t-SNE where there are few."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfdistill.evaluation.features import feature_rows, unit_rows

# t-SNE of so many takes 0.6 s on one core, of twice as many three times that.
_MOST_TSNE, _LEAST_TSNE = 500, 10


def embedding_map(features: Tensor, labels: Tensor) -> dict[str, Any]:
    """Where each of ``features`` ``[N, D]``, brought to length 1, lies on a map, with ``labels`` ``[N]``.

    Returns:
        ``pca``: N pairs, the first two principal components; ``explained``: their shares of the variance; ``tsne``: N
        pairs, or None where there are more than 500 or under 10, or where all features are one; ``classes``: N labels.
    """
    unit = unit_rows(feature_rows("features", features))
    centred = unit - unit.mean(0)
    # eigenvectors of the smaller of the two products: features are often more than there are images
    if centred.shape[0] < centred.shape[1]:
        variance, left = torch.linalg.eigh(centred @ centred.T)
        points = left[:, -2:].flip(1) * variance[-2:].flip(0).clamp_min(0).sqrt()
    else:
        variance, right = torch.linalg.eigh(centred.T @ centred)
        points = centred @ right[:, -2:].flip(1)
    points = points if points.shape[1] == 2 else torch.cat([points, torch.zeros_like(points)], 1)
    # the sign of an eigenvector is arbitrary: the point that is farthest out lies on the positive side
    farthest = points.abs().argmax(0)
    points = points * torch.where(points.gather(0, farthest[None]) < 0, -1.0, 1.0)
    total = float(variance.clamp_min(0).sum())
    spread = total / len(centred) > 1e-8
    explained = [float(v.clamp_min(0)) / total for v in variance[-2:].flip(0)] if spread else []
    return {
        "pca": _rounded(points),
        "explained": [round(share, 4) for share in explained],
        "tsne": _tsne(unit, points) if spread and _LEAST_TSNE <= len(unit) <= _MOST_TSNE else None,
        "classes": labels.tolist(),
    }


def _tsne(unit: Tensor, start: Tensor) -> list[list[float]]:
    from sklearn.manifold import TSNE

    # from the principal components, made small, the far order of the classes is kept
    begin = (start / start[:, 0].std() * 1e-4).float().cpu().numpy()
    tsne = TSNE(init=begin, max_iter=500, perplexity=min(30.0, (len(unit) - 1) / 3), random_state=0)
    return _rounded(torch.from_numpy(tsne.fit_transform(unit.cpu().numpy())))


def _rounded(points: Tensor) -> list[list[float]]:
    return [[float(f"{x:.4g}"), float(f"{y:.4g}")] for x, y in points.tolist()]
