"""The learner behind all methods that fit a head to the features of an embedding that all tasks share.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot.inner.functional import BatchNorm, Function, Statistics
from kshot.inner.precision import at_least_float32, without_autocast
from kshot.learner import Learner, query_loss
from kshot.learners.heads.each_label import EachLabel
from kshot.learners.heads.each_pixel import EachPixel
from kshot.learners.heads.head import Head
from kshot.objectives import Objective, classes_present, only_present, refuse_parts
from kshot.objectives.outputs import the_tensor
from kshot.types import Batch, Params, Task, Tree

PARTS: dict[str | None, Callable[[Head], Head]] = {"labels": EachLabel, "masks": EachPixel}
"""How a head is fitted where an example has no single class, by what the objective predicts."""


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
        head: the head to fit; for several labels of an example, or its pixels, one that fits each of them.
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
        if objective.predicts in PARTS and head.fits_parts:
            head = PARTS[objective.predicts](head)
        elif not isinstance(head, EachLabel | EachPixel):
            refuse_parts(objective, f"a learner with the head {type(head).__name__}")
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
