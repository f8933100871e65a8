"""DeepBDC: compare images by the Brownian distance covariance of their feature maps.

Shape legend: N support rows, M query rows, R positions of a map, D channels, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.distances import euclidean, exp_as, log_parameter
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import Prototypes
from kshot.objectives import Objective
from kshot.supplied import MapEmbedding
from kshot.types import Tree

EPSILON = 1e-5  # of squared distances, whose root has no finite derivative at 0


class DistanceCovariance(Head):
    r"""Class means of the distance matrices of feature maps, and a comparison with them; see `deep_bdc`.

    The state is that of `Prototypes`, for the upper triangles (D (D + 1) / 2) of distance matrices.

    Args:
        metric: "inner" or "euclidean".
        temperature: initial value of $\tau$.
    """

    takes_maps = True

    @check_arguments
    def __init__(self, metric: Literal["inner", "euclidean"], temperature: PositiveFloat) -> None:
        super().__init__()
        self.head = Prototypes(_inner if metric == "inner" else euclidean)
        self.log_temperature = log_parameter("temperature", temperature)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.fit(self._triangles(feat_ND), target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return self.head.predict(state, self._triangles(feat_MD))

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.statistics(self._triangles(feat_ND), target_NC, weight_N)

    def merge(self, old: Tree, new: Tree) -> Tree:
        return self.head.merge(old, new)

    def fit_statistics(self, statistics: Tree) -> Tree:
        return self.head.fit_statistics(statistics)

    def _triangles(self, feat_ND: Tensor) -> Tensor:
        return upper_triangles(distance_matrices(feat_ND, exp_as(feat_ND, self.log_temperature)))


def distance_matrices(feat_ND: Tensor, temperature: Tensor) -> Tensor:
    r"""Distances between the channels of each map (N, D, ...), their row and column means made 0, (N, D, D)."""
    row_NDR = feat_ND.flatten(2) if feat_ND.ndim > 2 else feat_ND[..., None]
    row_NDR = row_NDR - row_NDR.detach().mean(1, keepdim=True)  # digits: distances do not depend on it
    gram_NDD = row_NDR @ row_NDR.mT
    square_ND = gram_NDD.diagonal(dim1=1, dim2=2)
    square_NDD = (square_ND[:, :, None] + square_ND[:, None] - 2 * gram_NDD).clamp_min(0.0)
    distance_NDD = (temperature / (2 * row_NDR.shape[2]) * square_NDD + EPSILON).sqrt()
    mean_ND1 = distance_NDD.mean(2, keepdim=True)
    return distance_NDD - mean_ND1 - mean_ND1.mT + mean_ND1.mean(1, keepdim=True)


def upper_triangles(square_NDD: Tensor) -> Tensor:
    """The entries on and above the diagonal, (N, D (D + 1) / 2)."""
    row, column = torch.triu_indices(*square_NDD.shape[1:], device=square_NDD.device)
    return square_NDD[:, row, column]


def _inner(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
    return feat_MD @ proto_CD.mT


def deep_bdc(
    embedding: MapEmbedding,
    *,
    metric: Literal["inner", "euclidean"] = "inner",
    temperature: PositiveFloat = 1.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""DeepBDC: class means of Brownian distance covariance matrices, which hold how the channels of a map depend.

    $$ \hat a_{kl} = \sqrt{\tfrac{\tau}{2 r} \lVert x_k - x_l \rVert^2 + 10^{-5}}, \qquad
       A = J \hat A J, \quad J = I - \tfrac1d 1 1^\top; \qquad
       \hat y_c = \langle A_{\text{query}}, P_c \rangle, \quad P_c = \text{mean of } A \text{ over the support of } c $$

    $x_k$ are the r values of channel k of the map (d, H, W). The inner product of two such matrices is the Brownian
    distance covariance of the two images, which is 0 for independent features alone, whereas a covariance is so for
    uncorrelated ones already. Of the symmetric matrices the entries on and above the diagonal are compared. Positions
    are not matched.

    Args:
        embedding: any module: inputs (n, ...) to feature maps (n, d, H, W), such as `conv4` and `resnet12` give; one
            without positions has r = 1.
        metric: "inner", the paper's for one shot, or "euclidean" for minus the squared distance of A to $P_c$, the
            paper's for several.
        temperature: initial value of $\tau$, which is learned by its logarithm.
        objective, batchnorm: as in `protonet`.

    Returns:
        A learner for any number of ways and shots, whose states hold d (d + 1) / 2 numbers per class.

    Example:
        >>> learner = deep_bdc(nn.Identity())
        >>> support = kshot.Batch.of(torch.randn(4, 8, 3, 3), torch.tensor([0, 0, 1, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.randn(5, 8, 3, 3)).shape
        torch.Size([5, 2])

    References:
        Xie, Long, Lv, Wang, Li: Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot
        Classification, CVPR 2022, arXiv:2204.04567 (Meta DeepBDC).

    Deviations:
        The paper's 1×1 convolution that reduces the channels is part of the embedding, if it is wanted.
    """
    return HeadLearner(embedding, DistanceCovariance(metric, temperature), objective, batchnorm=batchnorm)
