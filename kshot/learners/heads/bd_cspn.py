"""BD-CSPN: class means that are rectified by the most confident queries of a task.

It is transductive: a prediction depends on the other queries, so all queries of a task belong in one call of `predict`;
padding does not, unless its weight is given (see `kshot.query_weight`). Its figures are not comparable to inductive
ones.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.distances import class_means, cosine, exp_as, log_parameter, unit
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective, only_present
from kshot.query_weight import current_query_weight
from kshot.supplied import Embedding
from kshot.types import Tree


class RectifiedPrototypes(Head):
    r"""The cosine to means of the support rows and confident queries of each class; see `bd_cspn`.

    The state is that of `Head.statistics`: the rows of the support set.

    Args:
        confident: $Z$, the number of queries that are added to each class.
        sharpness: $\varepsilon$, the factor on cosines in the weights of rows.
        scale: initial value of the learned factor on the cosines of predictions.
    """

    transductive = True

    @check_arguments
    def __init__(self, confident: NonNegativeInt, sharpness: NonNegativeFloat, scale: PositiveFloat) -> None:
        super().__init__()
        self.confident, self.sharpness = confident, sharpness
        self.log_scale = log_parameter("scale", scale)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.statistics(feat_ND, target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        feat_ND, feat_MD = unit(state["features"]), unit(feat_MD)
        weight_N, weight_M = state["weight"], current_query_weight(len(feat_MD), feat_MD)
        share_NC = state["targets"] * weight_N[:, None]
        mean_D = weight_N @ feat_ND / weight_N.sum().clamp_min(1e-12)
        feat_MD = feat_MD + mean_D - weight_M @ feat_MD / weight_M.sum().clamp_min(1e-12)
        proto_CD = class_means(feat_ND, state["targets"], weight_N)
        near_NC, near_MC = cosine(feat_ND, proto_CD), cosine(feat_MD, proto_CD)
        share_MC = self._chosen(only_present(near_MC, share_NC.sum(0) > 0), weight_M)
        share_NC = share_NC * (self.sharpness * near_NC).exp()
        share_MC = share_MC * (self.sharpness * near_MC).exp()
        total_CD = share_NC.mT @ feat_ND + share_MC.mT @ unit(feat_MD)  # a factor does not change its cosine
        return exp_as(feat_MD, self.log_scale) * cosine(feat_MD, total_CD)

    def _chosen(self, near_MC: Tensor, weight_M: Tensor) -> Tensor:
        """The weights (M, C) of the queries that are nearest to a class and among its most confident ones, else 0."""
        prob_MC = (self.sharpness * near_MC).softmax(1).detach()
        classes_C = torch.arange(near_MC.shape[1], device=near_MC.device)
        is_nearest_MC = near_MC.argmax(1, keepdim=True) == classes_C
        sure_MC = torch.where(is_nearest_MC & (weight_M > 0)[:, None], prob_MC, -1.0)
        surest = sure_MC.topk(min(self.confident, len(sure_MC)), 0)
        is_chosen = (surest.values >= 0).to(near_MC.dtype)
        return weight_M[:, None] * torch.zeros_like(sure_MC).scatter(0, surest.indices, is_chosen)


def bd_cspn(
    embedding: Embedding,
    *,
    confident: NonNegativeInt = 8,
    sharpness: NonNegativeFloat = 10.0,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""BD-CSPN, transductive: class means that are rectified by the most confident queries, and the cosine to them.

    $$ \hat y_{mc} = s \cos(z_m, p'_c), \qquad
       p'_c \propto \sum_{i \in S_c} e^{\varepsilon \cos(z_i, p_c)} \frac{z_i}{\lVert z_i \rVert}, \qquad
       z_m = f_m + \frac1N \sum_{i \in \text{support}} f_i - \frac1M \sum_m f_m $$

    $S_c$ are the support examples of c, and of the queries whose nearest class mean $p_c$ by the cosine is that of c
    the $Z$ most probable ones. The mean of the queries is shifted to that of the support, which diminishes the bias of
    the few examples; it **assumes** that both have the classes in the same proportions. Features $f$ are of unit
    length.

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        confident: $Z$; 0 shifts the queries alone.
        sharpness: $\varepsilon$.
        scale: initial value of $s$, which is learned if the learner is meta-trained.
        objective, batchnorm: as in `simpleshot`.

    Returns:
        A transductive learner for any number of ways and shots.

    Example:
        >>> learner = bd_cspn(nn.Flatten())
        >>> support = kshot.Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[3.0, 1.0], [1.0, 2.0]])).argmax(1)
        tensor([0, 1])

    References:
        Liu, Song, Qin: Prototype Rectification for Few-Shot Learning, ECCV 2020, arXiv:1911.10713.

    Deviations:
        The scale, which the paper does not need to choose a class, turns cosines into probabilities.
    """
    return HeadLearner(embedding, RectifiedPrototypes(confident, sharpness, scale), objective, batchnorm=batchnorm)
