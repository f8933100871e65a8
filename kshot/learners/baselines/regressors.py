"""Regressors of scikit-learn fitted to the support set of a task alone, for tasks whose inputs are rows of numbers.

Shape legend: N support rows, M query rows, F features, D numbers of a target.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learners.baselines.neighbours import KeptSupport, is_near, standardised
from kshot.objectives import Objective
from kshot.types import Batch, Tree

NUM_TREES, NUM_ROUNDS = 50, 50
FOLDS = 3
"""Of the cross-validation within a support set that gives the standard deviation of a prediction."""

Rows = np.ndarray
Fit = Callable[[Rows, Rows, Rows], Callable[[Rows], Rows]]
"""(rows (N, F), targets (N, D), weight (N,)) -> a function of rows (M, F) to predictions (M, D); float64."""


class SupportRegressor(KeptSupport):
    r"""A regressor fitted to the standardised support set at each prediction.

    The state is the support set, `{"inputs": (N, F), "targets": (N, D), "weight": (N,)}`, without rows of weight 0.
    Rows are fitted in an order of their content, so that their order has no effect. For an objective of distributions
    the standard deviation is that of the errors for held-out rows in a cross-validation within the support set; with a
    single row it is 1.

    Args:
        fit: the regressor.
        objective: of numbers (n, D) or of their distributions.
    """

    def __init__(self, fit: Fit, objective: Objective = objectives.mse) -> None:
        super().__init__(objective)
        self.fit = fit

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        support = Batch(state["inputs"], state["targets"], state["weight"])
        shape = len(inputs), *support.targets.shape[1:]
        if not len(support.weight):
            mean, std = np.zeros(shape), np.ones(shape)
        else:
            rows, queries = (part.numpy() for part in standardised(support, inputs.detach()))
            targets, weight = (
                leaf.cpu().double().flatten(1).numpy() for leaf in (support.targets, support.weight[:, None])
            )
            order = np.lexsort((*targets.T, *rows.T))
            rows, targets, weight = rows[order], targets[order], weight[order, 0]
            mean = self.fit(rows, targets, weight)(queries) if len(inputs) else np.zeros((0, targets.shape[1]))
            std = np.tile(self._deviation(rows, targets, weight), (len(mean), 1))
        prediction = torch.from_numpy(mean.reshape(shape)).to(inputs)
        if self.objective.predicts != "distribution":
            return prediction
        return {"mean": prediction, "std": torch.from_numpy(std.reshape(shape)).to(inputs)}

    def _deviation(self, rows: Rows, targets: Rows, weight: Rows) -> Rows:
        """Standard deviation (D,) of the errors for held-out rows; at least 0.1 % of that of the targets."""
        if self.objective.predicts != "distribution" or len(rows) < 2:
            return np.ones(targets.shape[1])
        squares, fold = np.zeros_like(targets), np.arange(len(rows)) % min(FOLDS, len(rows))
        for number in range(fold.max() + 1):
            kept, held = fold != number, fold == number
            squares[held] = (self.fit(rows[kept], targets[kept], weight[kept])(rows[held]) - targets[held]) ** 2
        floor = 1e-3 * np.sqrt(_mean((targets - _mean(targets, weight)) ** 2, weight))
        return np.maximum(np.sqrt(_mean(squares, weight)), np.maximum(floor, 1e-6))


def _mean(values: Rows, weight: Rows) -> Rows:
    return np.asarray(weight @ values / weight.sum())


@check_arguments
def ridge(penalty: PositiveFloat, objective: Objective = objectives.mse) -> SupportRegressor:
    """scikit-learn's ridge regression, with an intercept that is not penalised.

    Example:
        >>> learner = ridge(0.01)
        >>> support = Batch.of(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]]))
        >>> learner.predict(learner.adapt(support), torch.tensor([[3.0]])).round(decimals=1)
        tensor([[7.]])
    """
    from sklearn.linear_model import Ridge

    return SupportRegressor(partial(_fit_scikit, lambda: Ridge(alpha=penalty)), objective)


@check_arguments
def neighbours(k: PositiveInt, objective: Objective = objectives.mse) -> SupportRegressor:
    r"""The mean of the nearest support rows, Euclidean on standardised inputs, $\sum_{i \in k} w_i y_i / \sum w_i$.

    Example:
        >>> learner = neighbours(1)
        >>> support = Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [2.0]]))
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]]))
        tensor([[1.]])
    """
    return SupportRegressor(partial(_fit_neighbours, k), objective)


@check_arguments
def forest(trees: PositiveInt = NUM_TREES, objective: Objective = objectives.mse) -> SupportRegressor:
    """scikit-learn's random forest.

    Example:
        >>> learner = forest(20)
        >>> support = Batch.of(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
        >>> float(learner.predict(learner.adapt(support), torch.tensor([[5.0]]))) > 0.6
        True
    """
    from sklearn.ensemble import RandomForestRegressor

    make = partial(RandomForestRegressor, n_estimators=trees, random_state=0)
    return SupportRegressor(partial(_fit_scikit, make), objective)


@check_arguments
def boosting(leaf: PositiveInt, objective: Objective = objectives.mse) -> SupportRegressor:
    """scikit-learn's histogram boosting, with at least `leaf` rows in a leaf.

    Example:
        >>> learner = boosting(1)
        >>> support = Batch.of(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
        >>> float(learner.predict(learner.adapt(support), torch.tensor([[5.0]]))) > 0.6
        True
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    options = {"max_iter": NUM_ROUNDS, "min_samples_leaf": leaf, "early_stopping": False, "random_state": 0}
    return SupportRegressor(partial(_fit_scikit, partial(HistGradientBoostingRegressor, **options)), objective)


def _fit_scikit(make: Callable[[], Any], rows: Rows, targets: Rows, weight: Rows) -> Callable[[Rows], Rows]:
    """A regressor of scikit-learn for each number of the target."""
    constant = (targets == targets[0]).all(0)
    models = [None if same else make().fit(rows, y, sample_weight=weight) for same, y in zip(constant, targets.T)]
    return lambda queries: np.stack(
        [
            np.full(len(queries), y[0]) if model is None else model.predict(queries)
            for model, y in zip(models, targets.T)
        ],
        1,
    )


def _fit_neighbours(k: int, rows: Rows, targets: Rows, weight: Rows) -> Callable[[Rows], Rows]:
    def predict(queries: Rows) -> Rows:
        near = is_near(torch.from_numpy(rows), torch.from_numpy(queries), k).numpy() * weight
        return np.asarray(near @ targets / near.sum(1, keepdims=True))

    return predict
