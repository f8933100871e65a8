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
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import in_type_of
from kshot.learner import Learner, predict_query, query_loss
from kshot.learners.heads.distances import class_means
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective, weighted_mean
from kshot.supplied import FeatureShape, MapEmbedding
from kshot.types import Task, Tree


class Relation(Head):
    """A module that scores pairs of a class's mean features and a query's.

    Args:
        module: features of a class and of a query, concatenated, (n, 2D, ...) to scores (n, 1).
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
        pairs = in_type_of(self.module, pair_MCD.flatten(0, 1))
        return self.module(pairs).view(shape[:2]).to(feat_MD.dtype)


def relation_module(features: int | Sequence[int], hidden: int) -> nn.Module:
    """Two layers on pairs of features, and a linear score; 3×3 convolutions if features are maps (D, H, W)."""
    width, *positions = [features] if isinstance(features, int) else features
    if not positions:
        return nn.Sequential(
            nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
    layers: list[nn.Module] = []
    for channels in (2 * width, hidden):
        layers += [nn.Conv2d(channels, hidden, 3, padding=1), nn.GroupNorm(1, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, 1))


def squared_relations(learner: Learner, task: Task) -> Tensor:
    r"""The paper's outer loss, $\sum_c (\sigma(\hat y_c) - y_c)^2$, averaged over queries."""
    logits = predict_query(learner, learner.adapt(task.support), task.query)
    return weighted_mean((logits.sigmoid() - task.query.targets).square().sum(1), task.query.weight)


@check_arguments
def relation_net(
    embedding: MapEmbedding,
    *,
    features: FeatureShape,
    hidden: PositiveInt = 64,
    relation: nn.Module | None = None,
    loss: Literal["squared", "objective"] = "squared",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Relation network: a meta-learned module compares a query with each class.

    $$ r_c = \sigma \bigl(g_\phi([\bar f_c, f_\theta(x)])\bigr), \qquad
       \min_{\theta, \phi} \; \sum_c (r_c - y_c)^2, \qquad \bar f_c = \text{mean of } f_\theta \text{ over the support
       of } c $$

    Logits are the arguments of the sigmoid.

    Args:
        embedding: any module: inputs (n, ...) to feature maps (n, D, H, W), or to features (n, D).
        features: shape of one example's features, (D, H, W) or D.
        hidden: channels of the two hidden layers of $g_\phi$.
        relation: a custom $g_\phi$, (n, 2D, ...) to (n, 1), used instead of those layers.
        loss: the outer loss: "squared" (the paper's), or "objective", the cross entropy over classes.
        objective, batchnorm: as in `protonet`.

    Returns:
        A learner for any number of ways and shots. A prediction takes a pass of $g_\phi$ for each query and class.

    Raises:
        ValueError: an unknown loss.

    Example:
        >>> learner = relation_net(nn.Flatten(), features=3)
        >>> support = kshot.Batch.of(torch.eye(3), torch.tensor([0, 1, 2]), ways=3)
        >>> learner.predict(learner.adapt(support), torch.zeros(4, 3)).shape
        torch.Size([4, 3])

    References:
        Sung, Yang, Zhang, Xiang, Torr, Hospedales: Learning to Compare, CVPR 2018, arXiv:1711.06025.

    Deviations:
        Class features are means, where the paper sums them, so that their size does not depend on the shots. The
        default module has GroupNorm, since the paper's BatchNorm would mix the queries. Its maps keep their size and
        are averaged at the end, so that maps of any size fit, where the paper's are max-pooled after each convolution
        and flattened; there is no hidden layer after them. The paper's loss is the mean over classes rather than their
        sum.
    """
    head = Relation(relation_module(features, hidden) if relation is None else relation)
    outer = squared_relations if loss == "squared" else query_loss
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm, outer=outer)
