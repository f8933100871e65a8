"""Ratings of items by a user: errors in ratings, and the quality of the ranking.

Shape legend: n items, L levels of a rating.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.objectives.base import Objective, name_with_options
from kshot.objectives.classification import check_logits, cross_entropy, shared_classification
from kshot.objectives.ranking import auc, ndcg, precision, recall
from kshot.objectives.regression import mse
from kshot.types import Batch

NDCG_CUTOFFS = (1, 3, 5, 10)


def _ranking_metrics(score: Tensor, rating: Tensor, like: float) -> dict[str, Tensor]:
    """nDCG@{1, 3, 5, 10}, precision@5 and recall@10 of items (n,); those with a rating of at least `like` are liked."""
    liked = (rating >= like - 1e-6).to(rating.dtype)
    gains = {f"ndcg_{k}": ndcg(score, rating.clamp_min(0), k) for k in NDCG_CUTOFFS}
    return gains | {"precision_5": precision(score, liked, 5), "recall_10": recall(score, liked, 10)}


@dataclass(frozen=True)
class RatingMetrics:
    """The metrics of `rating`; comparable, so that equal objectives are equal."""

    mean: float
    std: float
    low: float
    high: float
    like: float

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        real = batch.weight > 0
        predicted, truth = (self.mean + self.std * values[real, 0] for values in (prediction, batch.targets))
        error = predicted.clamp(self.low, self.high) - truth
        errors = {"mae": error.abs().mean(), "mse": error.square().mean()}
        return errors | {"rmse": errors["mse"].sqrt()} | _ranking_metrics(predicted, truth, self.like)


def rating(mean: float, std: float, low: float, high: float, like: float) -> Objective:
    r"""Ratings as standardised numbers, $y' = (y - \mu) / \sigma$: the loss is `mse` of those.

    Metrics are in ratings, with predictions clipped to the scale: mae, mse and rmse of a task; and of the ranking by
    predicted rating: nDCG@{1, 3, 5, 10} with the rating as gain, precision@5 and recall@10 of the liked items.

    Args:
        mean, std: $\mu$ and $\sigma$.
        low, high, like: ends of the scale, and the lowest rating of a liked item.

    Example:
        >>> batch = Batch.of(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
        >>> metrics = rating(3.0, 1.0, 1.0, 5.0, like=4.0).metrics(torch.tensor([[0.0], [1.0]]), batch)
        >>> [round(float(metrics[name]), 4) for name in ("mae", "ndcg_1", "precision_5")]
        [0.5, 1.0, 0.5]
    """
    metrics = RatingMetrics(mean, std, low, high, like)
    return mse._replace(metrics=metrics, name=name_with_options("rating", vars(metrics)))


@dataclass(frozen=True)
class LevelMetrics:
    """The metrics of `levels`; comparable, so that equal objectives are equal."""

    values: tuple[float, ...]
    mean: float
    std: float
    like: float

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        check_logits(prediction, batch.targets)
        real = batch.weight > 0
        values = torch.tensor(self.values, dtype=prediction.dtype, device=prediction.device)
        probability, truth = prediction[real].softmax(-1), batch.targets[real].to(prediction.dtype) @ values
        expected = probability @ values
        if len(values) == 2:  # clicked or not
            figures = {"log_loss": cross_entropy(prediction, batch), "auc": auc(expected, truth)}
            return figures | _ranking_metrics(expected, truth, self.like)
        median = values[(probability.cumsum(-1) < 0.5).sum(-1).clamp(max=len(values) - 1)]
        errors = {"mae": (median - truth).abs().mean(), "rmse": (expected - truth).square().mean().sqrt()}
        return errors | _ranking_metrics(expected, truth, self.like)


def levels(values: Sequence[float], mean: float, std: float, like: float) -> Objective:
    r"""Ratings as one of a few levels: logits and one-hot targets (n, L), cross-entropy as in `classification`.

    The median of a distribution over levels minimises mae; its mean minimises rmse and orders the ranking. Metrics: mae
    of the median, rmse of the mean, and those of the ranking by the mean, as in `rating`; with two levels (clicked or
    not) log_loss, auc and those of the ranking.

    Args:
        values: ratings of the levels, at least two, ascending.
        mean, std, like: as in `rating`, of the training ratings.

    Example:
        >>> stars = levels([1, 2, 3], mean=2.0, std=1.0, like=3)
        >>> batch = Batch.of(torch.zeros(2, 1), torch.tensor([2, 0]), ways=3)
        >>> metrics = stars.metrics(torch.tensor([[0.0, 0.0, 9.0], [0.0, 9.0, 0.0]]), batch)
        >>> [round(float(metrics[name]), 3) for name in ("mae", "rmse", "ndcg_5")]
        [0.5, 0.707, 1.0]
    """
    if len(values) < 2 or list(values) != sorted(set(values)):
        raise ValueError(f"levels must be at least two ascending values, got {list(values)}")
    metrics = LevelMetrics(tuple(map(float, values)), float(mean), float(std), float(like))
    return shared_classification._replace(metrics=metrics, name=name_with_options("levels", vars(metrics)))


def levels_of(objective: Objective) -> tuple[float, ...] | None:
    """The levels of an objective made by `levels`, standardised by the training ratings; None for other objectives."""
    metrics = objective.metrics
    if not isinstance(metrics, LevelMetrics):
        return None
    return tuple((value - metrics.mean) / metrics.std for value in metrics.values)


def rates_items(objective: Objective) -> bool:
    """Whether an objective is one of ratings: made by `rating` or by `levels`."""
    return isinstance(objective.metrics, RatingMetrics | LevelMetrics)
