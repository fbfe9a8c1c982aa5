"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.evaluation.features import labelled_rows


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    l2: float | Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    max_iter: int = 200,
) -> float:
    """Test accuracy, in [0, 1], of a linear classifier fitted to frozen features; deterministic.

    Features are standardised by the training set's mean and deviation; then L-BFGS minimises
    mean cross-entropy + l2/2 · ‖W‖² (bias free) from zero. scikit-learn's ``C`` is 1 / (l2 · N). Of several
    ``l2`` the one with the lowest cross-entropy on every fifth training image of each class is taken (its
    accuracy would tie on small sets), then the classifier is fitted to all of them; the test features take
    no part in the choice.

    Args:
        train_x: ``[N, D]``.
        train_y: ``[N]`` class indices ≥ 0.
        test_x: ``[M, D]``.
        test_y: ``[M]``; a class that the training set lacks counts as wrong.
        l2: weight of the penalty, or the weights to choose from.
        max_iter: L-BFGS iterations for each fit.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not fit, a negative or missing ``l2``, or ``max_iter`` < 1.
    """
    grid = sorted({float(l2)} if isinstance(l2, int | float) else {float(value) for value in l2}, reverse=True)
    if not grid or not all(0 <= value < float("inf") for value in grid):
        raise ValueError(f"l2={l2}: give one number ≥ 0, or several to choose from")
    if max_iter < 1:
        raise ValueError(f"max_iter={max_iter}: give at least 1")
    # A callback of Lightning's validation runs in inference mode, where nothing can be fitted.
    with torch.inference_mode(False), torch.autocast(train_x.device.type, enabled=False):
        x, labels = labelled_rows("train features", train_x, train_y)
        test, test_y = labelled_rows("test features", test_x, test_y, like=x)
        classes, y = labels.unique(return_inverse=True)
        if len(grid) > 1:
            grid = [_choose(x, y, grid, max_iter)]
        mean, scale = standardisation(x)
        classifier = _fit((x - mean) / scale, y, len(classes), grid[0], max_iter)
        predicted = classes[_scores(classifier, (test - mean) / scale).argmax(1)]
        return (predicted == test_y).double().mean().item()


def _choose(x: Tensor, y: Tensor, grid: list[float], max_iter: int) -> float:
    """The ``l2`` (largest first in ``grid``) with the lowest held-out cross-entropy."""
    held_out = held_out_fold(y)
    if not held_out.any():
        return grid[0]
    fit_x, fit_y = x[~held_out], y[~held_out]
    mean, scale = standardisation(fit_x)
    fit_x, check_x, check_y = (fit_x - mean) / scale, (x[held_out] - mean) / scale, y[held_out]
    best, chosen = float("inf"), grid[0]
    classifier: Tensor | None = None
    for l2 in grid:
        # Each fit starts from the last: the path of solutions is continuous in l2.
        classifier = _fit(fit_x, fit_y, int(y.max()) + 1, l2, max_iter, start=classifier)
        loss = F.cross_entropy(_scores(classifier, check_x), check_y).item()
        if loss < best:
            best, chosen = loss, l2
    return chosen


def held_out_fold(y: Tensor) -> Tensor:
    """Which rows ``[N]`` a setting is chosen on: every fifth of each class, none where all classes have one row.

    Classes smaller than the fold give nothing away, so no class is without a training image.
    """
    counts = y.bincount()
    order = y.argsort(stable=True)
    rank = torch.empty_like(y)
    rank[order] = torch.arange(len(y), device=y.device) - (counts.cumsum(0) - counts)[y[order]]
    fold = min(5, int(counts.max()))
    return (rank % fold == fold - 1) & (fold > 1)


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale ``[D]`` of each dimension; a constant one keeps scale 1."""
    std, mean = torch.std_mean(x, 0, correction=0)
    rounding = 10 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    return mean, torch.where(std > rounding, std, 1.0)


def _fit(x: Tensor, y: Tensor, classes: int, l2: float, max_iter: int, start: Tensor | None = None) -> Tensor:
    """Weights and, in the last column, biases ``[C, D + 1]``."""
    classifier = x.new_zeros(classes, x.shape[1] + 1) if start is None else start.clone()
    classifier.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [classifier],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=1e-6,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_scores(classifier, x), y) + l2 / 2 * classifier[:, :-1].square().sum()
        loss.backward()
        return loss

    # step() enables gradients for the closure, also under the caller's no_grad.
    optimizer.step(closure)
    return classifier.detach()


def _scores(classifier: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, classifier[:, :-1], classifier[:, -1])
