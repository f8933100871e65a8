"""Learners that keep an embedding fixed within a task and fit a head on its features in closed form.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kshot import objectives
from kshot.inner.functional import BatchNorm, Function
from kshot.learner import Learner
from kshot.objectives import Objective, only_present
from kshot.types import Batch, Tree


class Head(nn.Module, ABC):
    """What is fitted on a support set's features. Its Parameters are meta-parameters."""

    @abstractmethod
    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        """Fit to features, targets and row weights; rows of weight 0 have no effect."""

    @abstractmethod
    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        """Predict (M, C) for features."""


class HeadLearner(Learner):
    r"""Embeds with a module that all tasks share, and fits a head to the support features.

    $$ \text{state} = \text{fit}(f_\theta(x_{\text{support}}), y), \quad
       \hat y = \text{predict}(\text{state}, f_\theta(x)) $$

    The state is `{"head": …, "statistics": …}`; the latter is there for BatchNorm on support statistics only.

    Args:
        embedding: any module that takes the task's inputs to features (n, ...), flattened to (n, D).
        head: what is fitted.
        objective: what the tasks ask.
        batchnorm: which statistics BatchNorm uses for a query (see `inner.functional.BatchNorm`).
    """

    def __init__(
        self, embedding: nn.Module, head: Head, objective: Objective, *, batchnorm: BatchNorm = "support"
    ) -> None:
        super().__init__(objective)
        self.embedding, self.head = embedding, head
        self.function = Function(embedding, batchnorm)
        self.transductive = self.function.transductive

    def adapt(self, support: Batch) -> Tree:
        features, statistics = self.function.support({}, support)
        head = self.head.fit(features.flatten(1), support.targets, support.weight)
        return {"head": head, "statistics": statistics} if statistics else {"head": head}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        features = self.function.query({}, state.get("statistics", {}), inputs)
        return self.head.predict(state["head"], features.flatten(1))


class Prototypes(Head):
    r"""The mean of each class, and the distance to it:

    $$ p_c = \frac{\sum_i w_i y_{ic} f_i}{\sum_i w_i y_{ic}}, \qquad \hat y_{mc} = -\lVert f_m - p_c \rVert^2
       \quad\text{or}\quad s \cos(f_m, p_c). $$

    A class without support examples gets logit $-\infty$'s stand-in, the lowest finite number: it is never chosen.

    Args:
        distance: "euclidean" (squared) or "cosine", whose scale $s$ is learned, from 10.
    """

    def __init__(self, distance: Literal["euclidean", "cosine"] = "euclidean") -> None:
        super().__init__()
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        self.distance = distance
        if distance == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        share_NC = target_NC * weight_N[:, None]
        count_C = share_NC.sum(0)
        return {"prototypes": (share_NC.mT @ feat_ND) / count_C.clamp_min(1e-12)[:, None], "count": count_C}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        proto_CD = state["prototypes"]
        if self.distance == "cosine":
            logit_MC = self.log_scale.exp() * normalize(feat_MD, dim=1) @ normalize(proto_CD, dim=1).mT
        else:
            logit_MC = 2 * feat_MD @ proto_CD.mT - proto_CD.square().sum(1) - feat_MD.square().sum(1, keepdim=True)
        return only_present(logit_MC, state["count"] > 0)


def protonet(
    embedding: nn.Module,
    *,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Prototypical networks: classify by the nearest class mean in a learned feature space.

    $$ p(y = c \mid x) = \mathrm{softmax}_c\bigl(-\lVert f_\theta(x) - p_c \rVert^2\bigr), \qquad
       p_c = \text{mean of } f_\theta \text{ over the support examples of } c $$

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...).
        distance: "euclidean" (squared, the paper's) or "cosine".
        objective: what the tasks ask.
        batchnorm: "support" (inductive), "query" (transductive) or "running".

    Returns:
        A learner for any number of ways and shots.

    Example:
        >>> learner = protonet(nn.Flatten())
        >>> support = Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]]))
        tensor([[-1., -9.]])

    References:
        Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175.

    Deviations:
        The paper's code trains with BatchNorm on the statistics of each batch and tests with running ones; here the
        support statistics serve both by default.
    """
    return HeadLearner(embedding, Prototypes(distance), objective, batchnorm=batchnorm)
