"""What a practitioner would use on tasks whose inputs are rows of numbers, such as rows of one table.

Each method is fitted to the support set of a task alone; only hyperparameters are chosen over tasks.

Shape legend: N support rows, M query rows, F features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import Learner
from kshot.learners.baselines import regressors
from kshot.learners.baselines.neighbours import KeptSupport, is_near, standardised
from kshot.learners.baselines.pool import float_rows
from kshot.objectives import Objective, classes_present, only_present
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Tree

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""C of logistic regression, and penalty of ridge regression."""
NEIGHBOURS = (1, 3, 5, 10)
LEAVES = (3, 10)
"""Least number of rows in a leaf of boosted trees; scikit-learn's default of 20 cannot split a support set of 30."""
NUM_TREES, NUM_ROUNDS = 50, 50
WIDE = 256
"""Number of features beyond which trees are left out: they are slow there, and worse than linear models."""
SMOOTHING = 0.01
"""Share of the uniform distribution in the predicted ones, so that no class has the probability 0."""


@check_arguments
def baselines(source: TaskSource) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines that suit tasks of rows of numbers, by name; {} if the tasks are of another kind.

    They are logistic or ridge regression with a tuned penalty, nearest neighbours, a random forest and histogram
    boosting. Rows of more than `WIDE` numbers are features of an encoder rather than a table, see `features.baselines`.

    Args:
        source: with classes of each task's own, or with numbers as targets and neither several groups nor series; only
            one training task is read.

    Returns:
        For each name a function that returns the candidates, among which validation tasks choose.

    Example:
        >>> from kshot.sources.tabular_prior import tabular_priors
        >>> {name: len(make()) for name, make in baselines(tabular_priors()).items()}
        {'logistic_regression': 5, 'knn': 4, 'random_forest': 1, 'histogram_boosting': 2}
    """
    objective = source.objective
    no_groups = source.member == "task" or (source.member == "group" and len(source.members("train")) == 1)
    of_numbers = objective.predicts in ("values", "distribution") and no_groups and not source.forecasts
    if not (objective.task_specific_classes or of_numbers) or not float_rows(source):
        return {}
    if source.task("train", 0).support.inputs.shape[1] > WIDE:  # features of an encoder rather than columns
        return {}
    if of_numbers:
        return {
            "ridge": lambda: [regressors.ridge(penalty, objective) for penalty in PENALTIES],
            "knn": lambda: [regressors.neighbours(k, objective) for k in NEIGHBOURS],
            "random_forest": lambda: [regressors.forest(objective=objective)],
            "histogram_boosting": lambda: [regressors.boosting(leaf, objective) for leaf in LEAVES],
        }
    return {
        "logistic_regression": lambda: [logistic_regression(c, objective=objective) for c in PENALTIES],
        "knn": lambda: [NearestNeighbours(k, objective) for k in NEIGHBOURS],
        "random_forest": lambda: [random_forest(objective=objective)],
        "histogram_boosting": lambda: [histogram_boosting(leaf, objective=objective) for leaf in LEAVES],
    }


class SupportClassifier(KeptSupport):
    """A classifier of scikit-learn, fitted to the standardised support set at each prediction.

    The state is the support set, `{"inputs": (N, F), "targets": (N, C), "weight": (N,)}`, without rows of weight 0.
    Rows are fitted in an order of their content, so that their order has no effect. Soft labels count as several rows.

    Args:
        make: returns the unfitted classifier, with `predict_proba` and with `sample_weight` in `fit`.
        objective: of classification.
    """

    def __init__(self, make: Callable[[], Any], objective: Objective = objectives.classification) -> None:
        super().__init__(objective)
        self.make = make

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        support = Batch(state["inputs"], state["targets"], state["weight"])
        present_C = classes_present(support)
        probability_MC = torch.full((len(inputs), len(present_C)), 1.0, dtype=torch.float64)
        if present_C.sum() > 1 and len(inputs):
            probability_MC = self._probabilities(support, inputs.detach())
        smooth_MC = (1 - SMOOTHING) * probability_MC + SMOOTHING / max(int(present_C.sum()), 1)
        return only_present(smooth_MC.log().to(inputs), present_C.to(inputs.device))

    def _probabilities(self, support: Batch, inputs: Tensor) -> Tensor:
        """Probabilities (M, C), float64, of two or more classes with support rows."""
        row_NF, row_MF = (part.numpy() for part in standardised(support, inputs))
        weight_NC = (support.targets * support.weight[:, None]).cpu().double().numpy()
        row, label = np.nonzero(weight_NC > 0)
        order = np.lexsort((label, *row_NF[row].T))
        row, label = row[order], label[order]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a solver that stops early where classes are separable
            model = self.make().fit(row_NF[row], label, sample_weight=weight_NC[row, label])
            predicted = model.predict_proba(row_MF)
        probability_MC = torch.zeros(len(inputs), weight_NC.shape[1]).double()
        probability_MC[:, model.classes_] = torch.from_numpy(predicted).double()
        return probability_MC


class NearestNeighbours(SupportClassifier):
    r"""Classify by the nearest support rows, Euclidean on standardised inputs, $p_c \propto \sum_{i \in k} w_i y_{ic}$.

    Example:
        >>> learner = NearestNeighbours(1)
        >>> support = Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]])).argmax(1)
        tensor([0])
    """

    @check_arguments
    def __init__(self, neighbours: PositiveInt, objective: Objective = objectives.classification) -> None:
        super().__init__(lambda: None, objective)
        self.neighbours = neighbours

    def _probabilities(self, support: Batch, inputs: Tensor) -> Tensor:
        row_NF, row_MF = standardised(support, inputs)
        votes_MC = is_near(row_NF, row_MF, self.neighbours) @ (support.targets * support.weight[:, None]).cpu().double()
        return votes_MC / votes_MC.sum(1, keepdim=True)


def logistic_regression(c: float, objective: Objective = objectives.classification) -> SupportClassifier:
    """scikit-learn's logistic regression, with the inverse penalty C.

    Example:
        >>> learner = logistic_regression(1.0)
        >>> support = Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]])).argmax(1)
        tensor([0])
    """
    from sklearn.linear_model import LogisticRegression

    return SupportClassifier(partial(LogisticRegression, C=c, max_iter=300), objective)


def random_forest(trees: int = NUM_TREES, objective: Objective = objectives.classification) -> SupportClassifier:
    """scikit-learn's random forest, about 0.1 s a task for 50 trees.

    Example:
        >>> learner = random_forest(20)
        >>> support = Batch.of(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]])).argmax(1)
        tensor([0])
    """
    from sklearn.ensemble import RandomForestClassifier

    return SupportClassifier(partial(RandomForestClassifier, n_estimators=trees, random_state=0), objective)


def histogram_boosting(leaf: int, objective: Objective = objectives.classification) -> SupportClassifier:
    """scikit-learn's histogram boosting, with at least `leaf` rows in a leaf.

    Example:
        >>> learner = histogram_boosting(1)
        >>> support = Batch.of(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]])).argmax(1)
        tensor([0])
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    options = {"max_iter": NUM_ROUNDS, "min_samples_leaf": leaf, "early_stopping": False, "random_state": 0}
    return SupportClassifier(partial(HistGradientBoostingClassifier, **options), objective)
