"""Relation networks: a learned comparison of a query with each class.

Shape legend: N support rows, M query rows, D features or channels, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveInt
from kshot.inner.functional import BatchNorm
from kshot.learner import Learner
from kshot.learners.gradient.outer_losses import query_loss
from kshot.learners.heads.protonet import Head, HeadLearner, class_means
from kshot.objectives import Objective, weighted_mean
from kshot.types import Task, Tree


class Relation(Head):
    """A module that scores pairs of a class's mean features and a query's.

    Args:
        module: features of a class and of a query, one behind the other, (n, 2D, ...) to scores (n, 1).
    """

    takes_maps = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return {"means": class_means(feat_ND, target_NC, weight_N)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        mean_CD = state["means"]
        shape = (len(feat_MD), len(mean_CD), *mean_CD.shape[1:])
        pair_MCD = torch.cat([mean_CD.expand(shape), feat_MD[:, None].expand(shape)], 2)
        return self.module(pair_MCD.flatten(0, 1)).view(shape[:2])


def relation_module(features: int | Sequence[int], hidden: int) -> nn.Module:
    """Two layers on pairs of features, and a linear score; 3×3 convolutions where features are maps (D, H, W)."""
    width, *places = [features] if isinstance(features, int) else features
    if not places:
        return nn.Sequential(
            nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
    layers: list[nn.Module] = []
    for channels in (2 * width, hidden):
        layers += [nn.Conv2d(channels, hidden, 3, padding=1), nn.GroupNorm(1, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, 1))


def squared_relations(learner: Learner, task: Task) -> Tensor:
    r"""The paper's outer loss, $\sum_c (\sigma(\hat y_c) - y_c)^2$, as a mean over queries."""
    logits = learner.predict(learner.adapt(task.support), task.query.inputs)
    return weighted_mean((logits.sigmoid() - task.query.targets).square().sum(1), task.query.weight)


def relation_net(
    embedding: nn.Module,
    *,
    features: int | Sequence[int],
    hidden: PositiveInt = 64,
    relation: nn.Module | None = None,
    loss: Literal["squared", "objective"] = "squared",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Relation network: a module compares a query with each class, and learns to from the tasks.

    $$ r_c = \sigma \bigl(g_\phi([\bar f_c, f_\theta(x)])\bigr), \qquad
       \min_{\theta, \phi} \; \sum_c (r_c - y_c)^2, \qquad \bar f_c = \text{mean of } f_\theta \text{ over the support
       of } c $$

    Logits are what the sigmoid is taken of.

    Args:
        embedding: any module: inputs (n, ...) to feature maps (n, D, H, W), or to features (n, D).
        features: the shape of one example's features, (D, H, W) or D.
        hidden: channels of the two hidden layers of $g_\phi$.
        relation: a $g_\phi$ of your own, (n, 2D, ...) to (n, 1), in place of those.
        loss: the outer loss: "squared" (the paper's), or "objective", the cross entropy over classes.
        objective: what the tasks ask.
        batchnorm: "support" (inductive), "query" (transductive) or "running", of the embedding.

    Returns:
        A learner for any number of ways and shots. A prediction costs a pass of $g_\phi$ for each query and class.

    Raises:
        ValueError: another loss, or a width below 1.

    Example:
        >>> learner = relation_net(nn.Flatten(), features=3)
        >>> support = kshot.Batch.of(torch.eye(3), torch.tensor([0, 1, 2]), ways=3)
        >>> learner.predict(learner.adapt(support), torch.zeros(4, 3)).shape
        torch.Size([4, 3])

    References:
        Sung, Yang, Zhang, Xiang, Torr, Hospedales: Learning to Compare, CVPR 2018, arXiv:1711.06025.

    Deviations:
        Class features are means, where the paper adds them up, so that any number of shots looks alike. The default
        module has GroupNorm, where the paper's BatchNorm would mix the queries, and pools at its end, so that maps of
        any size fit.
    """
    if loss not in ("squared", "objective"):
        raise ValueError(f"loss must be 'squared' or 'objective', got {loss!r}")
    if hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}")
    head = Relation(relation_module(features, hidden) if relation is None else relation)
    outer = squared_relations if loss == "squared" else query_loss
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm, outer=outer)
