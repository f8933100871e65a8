"""The learner behind all methods that fit a head to the features of an embedding that all tasks share.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot.inner.functional import BatchNorm, Function, Statistics
from kshot.inner.precision import at_least_float32, without_autocast
from kshot.learner import Learner, query_loss
from kshot.objectives import Objective, classes_present, only_present, refuse_labels
from kshot.objectives.outputs import the_tensor
from kshot.types import Batch, Params, Task, Tree


class Head(nn.Module, ABC):
    """A predictor that is fitted to a support set's features. Its Parameters are meta-parameters.

    It is given features, targets and weights in one type, float32 or wider, and never under `torch.autocast`.

    Attributes:
        takes_maps: whether features keep the embedding's shape (N, D, ...); else they are flattened to (N, D).
        scores_absent: whether classes without support examples get a score too, as from a regression. They get no
            probability anyway where the objective has task-specific classes.
        transductive: whether a query's prediction depends on the other queries.
    """

    takes_maps: bool = False
    scores_absent: bool = False
    transductive: bool = False

    @abstractmethod
    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        """Fit to features, targets and row weights; rows of weight 0 have no effect."""

    @abstractmethod
    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        """Predict (M, C) for features."""

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        """Statistics of a support set from which the head can be fitted, alone or merged; by default the rows."""
        return {"features": feat_ND, "targets": target_NC, "weight": weight_N}

    def merge(self, old: Tree, new: Tree) -> Tree:
        """Statistics of the union of two support sets; the new one may have more classes, placed last."""
        added = new["targets"].shape[1] - old["targets"].shape[1]
        old = old | {"targets": torch.nn.functional.pad(old["targets"], (0, added))}
        return {name: torch.cat([old[name], new[name]]) for name in old}

    def fit_statistics(self, statistics: Tree) -> Tree:
        """The state that `fit` gives for the rows that the statistics describe."""
        return self.fit(statistics["features"], statistics["targets"], statistics["weight"])


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


def fit_head(head: Head, features: Tensor, support: Batch) -> Tree:
    """The state of a head for a support set with the given features, in the type of `at_least_float32`."""
    with without_autocast(features.device):
        return head.fit(*_in_one_type(features, support))


def predict_head(head: Head, state: Tree, features: Tensor) -> Tensor:
    """The prediction of a head for features, in the type of `at_least_float32`."""
    with without_autocast(features.device):
        return head.predict(state, at_least_float32(features))


def _in_one_type(features: Tensor, support: Batch) -> tuple[Tensor, Tensor, Tensor]:
    features = at_least_float32(features)
    return features, support.targets.to(features.dtype), support.weight.to(features.dtype)


class HeadLearner(Learner):
    r"""Embeds with a module that all tasks share, and fits a head to the support features.

    $$ \text{state} = \text{fit}(f_\theta(x_{\text{support}}), y), \quad
       \hat y = \text{predict}(\text{state}, f_\theta(x)) $$

    The state is `{"head": …, "statistics": …, "present": (C,)}`. "statistics" is there if queries need BatchNorm
    statistics of the support, "present" if classes without support examples get no probability. A learner that tunes
    the embedding adds its `"params"`. Any number of ways and shots will do.

    The embedding may compute in any type. The head, its state and the prediction are in the type of the features, or in
    float32 if features are narrower (bfloat16, float16), whose digits do not suffice for distances and their
    differences.

    Args:
        embedding: any module that maps the task's inputs to features (n, ...).
        head: the head to fit.
        objective: loss and metrics of the tasks.
        batchnorm: statistics that BatchNorm uses for a query (see `inner.functional.BatchNorm`).
        outer: (learner, task) -> (), the loss that meta-training minimises.
    """

    def __init__(
        self,
        embedding: nn.Module,
        head: Head,
        objective: Objective,
        *,
        batchnorm: BatchNorm = "support",
        outer: Callable[[HeadLearner, Task], Tensor] = query_loss,
    ) -> None:
        super().__init__(objective)
        refuse_labels(objective, f"a learner with the head {type(head).__name__}")
        self.embedding, self.head, self.outer = embedding, head, outer
        self.function = Function(embedding, batchnorm)
        self.task_norm = self.function.task_norm
        self.transductive = self.function.transductive or head.transductive

    def forward(self, task: Task) -> Tensor:
        """The outer loss of one task, ()."""
        return self.outer(self, task)

    def _adapt(self, support: Batch, *, extendable: bool = False) -> Tree:
        """Adapt to a support set; an `extendable` state also holds the `"memory"` that `extend` needs."""
        features, statistics = self.embed(support)
        state = self.fit(support, features, statistics)
        if extendable:
            state["memory"] = self._statistics(features, support)
        return state

    def extend(self, state: Tree, support: Batch) -> Tree:
        """As `Learner.extend`, for states of `adapt(…, extendable=True)`: equal to adapting to all examples at once.

        BatchNorm statistics of the support stay those of the first support set.
        """
        if "memory" not in state:
            raise ValueError("this state has no memory to extend: make it by adapt(support, extendable=True)")
        self._check_support(support)
        present, ways = state.get("present"), support.targets.shape[1]
        if present is not None and ways < len(present):
            raise ValueError(
                f"the state has {len(present)} classes but the targets have {ways} columns: one-hot targets need a "
                "column for each class of the state first, then those of new classes"
            )
        features = self.embed_query(state, support.inputs)
        memory = self.head.merge(state["memory"], self._statistics(features, support))
        with without_autocast(features.device):
            extended = state | {"head": self.head.fit_statistics(memory), "memory": memory}
        if present is not None:
            padded = torch.cat([present, present.new_zeros(ways - len(present))])
            extended["present"] = padded | classes_present(support)
        return extended

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        return self.score(state, self.embed_query(state, inputs))

    def embed(self, support: Batch, params: Params | None = None) -> tuple[Tensor, Statistics]:
        """The features of a support set, and the BatchNorm statistics that queries will need.

        Args:
            support: leaves (n, ...).
            params: parameters that replace the embedding's own.
        """
        features, statistics = self.function.support(params or {}, support)
        return self._flatten(features), statistics

    def embed_query(self, state: Tree, inputs: Tree) -> Tensor:
        """The features of queries."""
        return self._flatten(self.function.query(state.get("params", {}), state.get("statistics", {}), inputs))

    def fit(self, support: Batch, features: Tensor, statistics: Statistics) -> Tree:
        """The state of a support set with the given features."""
        state: dict[str, Tree] = {"head": fit_head(self.head, features, support)}
        if statistics:
            state["statistics"] = statistics
        if self.objective.task_specific_classes or not self.head.scores_absent:
            state["present"] = classes_present(support)
        return state

    def score(self, state: Tree, features: Tensor) -> Tensor:
        """The prediction for queries with the given features."""
        prediction = predict_head(self.head, state["head"], features)
        return only_present(prediction, state["present"]) if "present" in state else prediction

    def _statistics(self, features: Tensor, support: Batch) -> Tree:
        with without_autocast(features.device):
            return self.head.statistics(*_in_one_type(features, support))

    def _flatten(self, output: Tree) -> Tensor:
        features = the_tensor(output, "holds the features")
        return features if self.head.takes_maps else features.flatten(1)
