"""Heads: predictors that are fitted to the features of a support set.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kshot.types import Tree


class Head(nn.Module, ABC):
    """A predictor that is fitted to a support set's features. Its Parameters are meta-parameters.

    It is given features, targets and weights in one type, float32 or wider, and never under `torch.autocast`.

    Attributes:
        takes_maps: whether features keep the embedding's shape (N, D, ...); else they are flattened to (N, D).
        scores_absent: whether classes without support examples get a score too, as from a regression. They get no
            probability anyway where the objective has task-specific classes.
        transductive: whether a query's prediction depends on the other queries.
        fits_parts: whether it may be fitted to each label of a multi-label task (see `each_label.EachLabel`), and to
            each pixel of a mask (`each_pixel.EachPixel`).
    """

    takes_maps: bool = False
    scores_absent: bool = False
    transductive: bool = False
    fits_parts: bool = False

    @abstractmethod
    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor, /) -> Tree:
        """Fit to features, targets and row weights; rows of weight 0 have no effect."""

    @abstractmethod
    def predict(self, state: Tree, feat_MD: Tensor, /) -> Tensor:
        """Predict (M, C) for features."""

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor, /) -> Tree:
        """Statistics of a support set from which the head can be fitted, alone or merged; by default the rows."""
        return {"features": feat_ND, "targets": target_NC, "weight": weight_N}

    def merge(self, old: Tree, new: Tree, /) -> Tree:
        """Statistics of the union of two support sets; the new one may have more classes, placed last."""
        targets = old["targets"]
        added = new["targets"].shape[1] - targets.shape[1]
        old = old | {"targets": torch.nn.functional.pad(targets, (0, 0) * (targets.ndim - 2) + (0, added))}
        return {name: torch.cat([old[name], new[name]]) for name in old}

    def fit_statistics(self, statistics: Tree, /) -> Tree:
        """The state that `fit` gives for the rows that the statistics describe."""
        return self.fit(statistics["features"], statistics["targets"], statistics["weight"])


class SumsByClass(Head):
    """A head whose state, leaves (C, ...), is sums over the examples of each class, and its statistics too."""

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.fit(feat_ND, target_NC, weight_N)

    def merge(self, old: Tree, new: Tree) -> Tree:
        return sum_by_class(old, new)

    def fit_statistics(self, statistics: Tree) -> Tree:
        return statistics


class FeatureStatistics(Head):
    """A head with constants that `training.pretrain.fit_feature_statistics` measures on the training classes.

    Attributes:
        batches: default number of batches of training examples to measure on.
    """

    batches: int = 16

    @abstractmethod
    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        """Set the constants, in place, from features of training examples, one-hot over the training classes."""


def sum_by_class(old: Tree, new: Tree) -> Tree:
    """The sum of two trees of statistics with leaves (C, ...); classes that only the new one has count 0 in the old."""
    return {
        name: leaf + torch.cat([old[name], leaf.new_zeros(len(leaf) - len(old[name]), *leaf.shape[1:])])
        for name, leaf in new.items()
    }
