"""Learners that keep an embedding fixed within a task and fit a head on its features.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kshot import objectives
from kshot.inner.functional import BatchNorm, Function, Statistics
from kshot.learner import Learner
from kshot.learners.gradient.outer_losses import query_loss
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Params, Task, Tree


class Head(nn.Module, ABC):
    """What is fitted on a support set's features. Its Parameters are meta-parameters.

    Attributes:
        takes_maps: whether features come as the embedding makes them, (N, D, ...); else they are flattened to (N, D).
        scores_absent: whether classes without support examples get a score too, as from a regression. Where tasks
            have classes of their own these get no probability anyway.
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
        """What is kept of a support set, so that more may come; by default its rows."""
        return {"features": feat_ND, "targets": target_NC, "weight": weight_N}

    def merge(self, old: Tree, new: Tree) -> Tree:
        """What is kept of two support sets together, of which the new one may have classes more, behind the others."""
        further = new["targets"].shape[1] - old["targets"].shape[1]
        old = old | {"targets": torch.nn.functional.pad(old["targets"], (0, further))}
        return {name: torch.cat([old[name], new[name]]) for name in old}

    def fit_statistics(self, memory: Tree) -> Tree:
        """What `fit` gives for all that is kept."""
        return self.fit(memory["features"], memory["targets"], memory["weight"])


class HeadLearner(Learner):
    r"""Embeds with a module that all tasks share, and fits a head to the support features.

    $$ \text{state} = \text{fit}(f_\theta(x_{\text{support}}), y), \quad
       \hat y = \text{predict}(\text{state}, f_\theta(x)) $$

    The state is `{"head": …, "statistics": …, "present": (C,)}`; the statistics are there where queries need BatchNorm
    statistics of the support, the classes present where a class without support examples gets no probability. A learner
    that tunes the embedding to a task adds its `"params"`.

    Args:
        embedding: any module that takes the task's inputs to features (n, ...).
        head: what is fitted.
        objective: what the tasks ask.
        batchnorm: which statistics BatchNorm uses for a query (see `inner.functional.BatchNorm`).
        outer: the loss that meta-training descends.
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
            state["memory"] = self.head.statistics(features, support.targets, support.weight)
        return state

    def extend(self, state: Tree, support: Batch) -> Tree:
        """As `Learner.extend`, for states that `adapt(…, extendable=True)` made: the same as adapting to all examples
        at once. Where BatchNorm takes statistics of the support these stay those of the first one."""
        if "memory" not in state:
            raise ValueError("this state holds no memory to extend: make it by adapt(support, extendable=True)")
        self._check_support(support)
        before, now = state.get("present"), support.targets.shape[1]
        if before is not None and now < len(before):
            raise ValueError(
                f"the state knows {len(before)} classes, and the targets are of {now}: one-hot targets have a column "
                "for each class of the state first, and the new classes behind them"
            )
        features = self.embed_query(state, support.inputs)
        memory = self.head.merge(state["memory"], self.head.statistics(features, support.targets, support.weight))
        extended = state | {"head": self.head.fit_statistics(memory), "memory": memory}
        if before is not None:
            extended["present"] = torch.cat([before, before.new_zeros(now - len(before))]) | classes_present(support)
        return extended

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        return self.score(state, self.embed_query(state, inputs))

    def embed(self, support: Batch, params: Params | None = None) -> tuple[Tensor, Statistics]:
        """The features of a support set, and the BatchNorm statistics that queries will need.

        Args:
            support: leaves (n, ...).
            params: parameters of the embedding that stand in for its own.
        """
        features, statistics = self.function.support(params or {}, support)
        return self._shaped(features), statistics

    def embed_query(self, state: Tree, inputs: Tree) -> Tensor:
        """The features of queries."""
        return self._shaped(self.function.query(state.get("params", {}), state.get("statistics", {}), inputs))

    def fit(self, support: Batch, features: Tensor, statistics: Statistics) -> Tree:
        """The state that is made of a support set's features."""
        state: dict[str, Tree] = {"head": self.head.fit(features, support.targets, support.weight)}
        if statistics:
            state["statistics"] = statistics
        if self.objective.task_specific_classes or not self.head.scores_absent:
            state["present"] = classes_present(support)
        return state

    def score(self, state: Tree, features: Tensor) -> Tensor:
        """The prediction for queries with such features."""
        prediction = self.head.predict(state["head"], features)
        return only_present(prediction, state["present"]) if "present" in state else prediction

    def _shaped(self, features: Tensor) -> Tensor:
        return features if self.head.takes_maps else features.flatten(1)


Distance = Callable[[Tensor, Tensor], Tensor]
"""(feat_MD, proto_CD) -> logits (M, C), the larger the nearer. A module's Parameters are meta-parameters."""


def euclidean(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
    r"""Minus the squared Euclidean distance, $-\lVert f_m - p_c \rVert^2$."""
    return 2 * feat_MD @ proto_CD.mT - proto_CD.square().sum(1) - feat_MD.square().sum(1, keepdim=True)


def cosine(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
    r"""The cosine of the angle between them, $\cos(f_m, p_c)$."""
    return normalize(feat_MD, dim=1) @ normalize(proto_CD, dim=1).mT


class Scaled(nn.Module):
    r"""A distance times a learned scale, $s \, d(f_m, p_c)$; for those that are bounded.

    Args:
        distance: $d$.
        scale: $s > 0$, where it starts.
    """

    def __init__(self, distance: Distance, scale: float = 10.0) -> None:
        super().__init__()
        self.distance = distance
        self.log_scale = log_parameter("scale", scale)

    def forward(self, feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
        return self.log_scale.exp() * self.distance(feat_MD, proto_CD)


def added(old: Tree, new: Tree) -> Tree:
    """The sums of two support sets together: leaves (C, ...) of the old one count nothing for classes it has not."""
    return {
        name: leaf + torch.cat([old[name], leaf.new_zeros(len(leaf) - len(old[name]), *leaf.shape[1:])])
        for name, leaf in new.items()
    }


def log_parameter(name: str, value: float) -> nn.Parameter:
    """The logarithm of a number above 0 that is learned, as a Parameter ()."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return nn.Parameter(torch.tensor(float(value)).log())


def class_means(feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tensor:
    r"""The mean of each class's features (N, ...), as (C, ...); 0 for a class without examples.

    $$ p_c = \frac{\sum_i w_i y_{ic} f_i}{\sum_i w_i y_{ic}} $$
    """
    share_NC = target_NC * weight_N[:, None]
    mean_NC = share_NC / share_NC.sum(0).clamp_min(1e-12)
    return torch.tensordot(mean_NC.mT, feat_ND, 1)


class Prototypes(Head):
    r"""The mean $p_c$ of each class, and the distance to it.

    Args:
        distance: "euclidean" (squared), "cosine" with a scale that is learned, from 10, or a `Distance` of your own.
    """

    def __init__(self, distance: Literal["euclidean", "cosine"] | Distance = "euclidean") -> None:
        super().__init__()
        known: dict[str, Distance] = {"euclidean": euclidean, "cosine": Scaled(cosine)}
        if isinstance(distance, str) and distance not in known:
            raise ValueError(
                f"distance must be 'euclidean', 'cosine' or a function (feat_MD, proto_CD) -> logits, got {distance!r}"
            )
        self.distance: Distance = known[distance] if isinstance(distance, str) else distance

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return {"prototypes": class_means(feat_ND, target_NC, weight_N)}

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        share_NC = target_NC * weight_N[:, None]
        return {"sum": share_NC.mT @ feat_ND, "count": share_NC.sum(0)}

    def merge(self, old: Tree, new: Tree) -> Tree:
        return added(old, new)

    def fit_statistics(self, memory: Tree) -> Tree:
        return {"prototypes": memory["sum"] / memory["count"].clamp_min(1e-12)[:, None]}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return self.distance(feat_MD, state["prototypes"])


def protonet(
    embedding: nn.Module,
    *,
    distance: Literal["euclidean", "cosine"] | Distance = "euclidean",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Prototypical networks: classify by the nearest class mean in a learned feature space.

    $$ p(y = c \mid x) = \mathrm{softmax}_c\bigl(-\lVert f_\theta(x) - p_c \rVert^2\bigr), \qquad
       p_c = \text{mean of } f_\theta \text{ over the support examples of } c $$

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...).
        distance: "euclidean" (squared, the paper's), "cosine" with a learned scale, or a function of your own, features
            (M, D) and class means (C, D) to logits (M, C).
        objective: what the tasks ask.
        batchnorm: "support" (inductive), "query" (transductive) or "running".

    Returns:
        A learner for any number of ways and shots.

    Raises:
        ValueError: another name of a distance.

    Example:
        >>> learner = protonet(nn.Flatten())
        >>> support = Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]]))
        tensor([[-1., -9.]])
        >>> learner = protonet(nn.Flatten(), distance=lambda feat, proto: -torch.cdist(feat, proto, p=1))
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]]))
        tensor([[-1., -3.]])

    References:
        Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175.

    Deviations:
        The paper's code trains with BatchNorm on the statistics of each batch and tests with running ones; here the
        support statistics serve both by default.
    """
    return HeadLearner(embedding, Prototypes(distance), objective, batchnorm=batchnorm)
