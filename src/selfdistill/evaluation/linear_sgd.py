"""The linear probe as papers train it: SGD with a cosine, several learning rates side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.evaluation.features import labelled_rows
from selfdistill.evaluation.linear import held_out_fold, standardisation


def linear_probe_sgd(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    learning_rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    epochs: int = 100,
    batch_size: int = 256,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> float:
    """Test accuracy, in [0, 1], of a linear classifier trained by SGD on cached features; deterministic.

    The recipe that BYOL, MoCo v3 and DINO share (arXiv 2006.07733, 2104.02057, 2104.14294): momentum .9, a cosine to
    zero without warm-up, no weight decay, 100 epochs, the best of several learning rates. Two differences: the features
    are cached, so images are not augmented, and standardised, which stands for the batch norm without affine
    parameters that papers put before the classifier. Classifiers of all learning rates see the same batches; the rate
    is chosen on every fifth training image of each class, never on the test features, and trained again on all.

    Args:
        train_x: ``[N, D]``.
        train_y: ``[N]`` class indices ≥ 0.
        test_x: ``[M, D]``.
        test_y: ``[M]``; a class that the training set lacks counts as wrong.
        learning_rates: to choose from.
        epochs: passes over the training features.
        batch_size: features a step; the whole set where it is smaller.
        momentum: of SGD.
        weight_decay: of SGD, weights only.
        seed: of the order.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not fit, or a setting out of its range.
    """
    rates = sorted({float(rate) for rate in learning_rates})
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"learning_rates={list(learning_rates)}: give numbers above 0")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size}: give at least one of each")
    with torch.inference_mode(False), torch.autocast(train_x.device.type, enabled=False):
        x, labels = labelled_rows("train features", train_x, train_y)
        test, test_y = labelled_rows("test features", test_x, test_y, like=x)
        classes, y = labels.unique(return_inverse=True)

        def trained(x: Tensor, y: Tensor, rates: list[float]) -> Tensor:
            return _train(x, y, len(classes), rates, epochs, batch_size, momentum, weight_decay, seed)

        held_out = held_out_fold(y)
        if len(rates) > 1 and held_out.any():
            mean, scale = standardisation(x[~held_out])
            candidates = trained((x[~held_out] - mean) / scale, y[~held_out], rates)
            scores = _scores(candidates, (x[held_out] - mean) / scale)
            losses = torch.stack([F.cross_entropy(s, y[held_out]) for s in scores])
            rates = [rates[int(losses.nan_to_num(nan=math.inf).argmin())]]
        mean, scale = standardisation(x)
        classifier = trained((x - mean) / scale, y, rates[-1:])
        predicted = classes[_scores(classifier, (test - mean) / scale)[0].argmax(1)]
        return (predicted == test_y).double().mean().item()


def _train(
    x: Tensor,
    y: Tensor,
    classes: int,
    rates: list[float],
    epochs: int,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    seed: int,
) -> Tensor:
    """Classifiers ``[L, C, D + 1]``, one a learning rate, the bias last."""
    weights = x.new_zeros(len(rates), classes, x.shape[1] + 1)
    velocity = torch.zeros_like(weights)
    rate = x.new_tensor(rates)[:, None, None]
    order = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(x) / batch_size)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).to(x.device).split(batch_size):
            part = torch.cat([x[rows], x.new_ones(len(rows), 1)], 1)
            # the gradient of the mean cross-entropy of a linear classifier, written out
            error = (weights @ part.T).softmax(1)
            error[:, y[rows], torch.arange(len(rows), device=x.device)] -= 1
            gradient = error @ part / len(rows)
            gradient[..., :-1] += weight_decay * weights[..., :-1]
            velocity = momentum * velocity + gradient
            weights = weights - rate * (1 + math.cos(math.pi * step / steps)) / 2 * velocity
            step += 1
    return weights


def _scores(classifiers: Tensor, x: Tensor) -> Tensor:
    """``[L, N, C]``."""
    return x @ classifiers[..., :-1].transpose(1, 2) + classifiers[:, None, :, -1]
