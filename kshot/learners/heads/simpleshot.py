"""SimpleShot: nearest class means of centred and normalised features.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import widest_float
from kshot.learners.heads.distances import Scaled, euclidean, unit
from kshot.learners.heads.head import FeatureStatistics, Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import Prototypes
from kshot.objectives import Objective
from kshot.supplied import Embedding, FeatureCount
from kshot.types import Tree


class Centred(FeatureStatistics):
    r"""Fits a head to features minus their mean over the training classes, at unit length (CL2N):

    $$ f \mapsto (f - \mu) / \lVert f - \mu \rVert $$

    Args:
        head: the head to fit to them.
        features: D, width of the embedding's output.

    Attributes:
        centre: $\mu$, (D,), 0 until `training.pretrain.fit_feature_statistics` measures it.
    """

    centre: Tensor

    @check_arguments
    def __init__(self, head: Head, features: PositiveInt) -> None:
        super().__init__()
        self.head = head
        self.scores_absent, self.transductive = head.scores_absent, head.transductive
        self.register_buffer("centre", torch.zeros(features))

    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        wide = widest_float(feat_ND.device)
        weight_N, feat_ND = weight_N.to(wide), feat_ND.to(wide)
        self.centre.copy_(weight_N @ feat_ND / weight_N.sum())

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.fit(self._normalize(feat_ND), target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return self.head.predict(state, self._normalize(feat_MD))

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.statistics(self._normalize(feat_ND), target_NC, weight_N)

    def merge(self, old: Tree, new: Tree) -> Tree:
        return self.head.merge(old, new)

    def fit_statistics(self, statistics: Tree) -> Tree:
        return self.head.fit_statistics(statistics)

    def _normalize(self, feat_ND: Tensor) -> Tensor:
        return unit(feat_ND - self.centre.to(feat_ND.dtype))


def simpleshot(
    embedding: Embedding,
    *,
    features: FeatureCount,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""SimpleShot: the nearest class mean of pretrained features, centred on the training classes and normalised.

    $$ z = \frac{f(x) - \mu}{\lVert f(x) - \mu \rVert}, \qquad
       p(y = c \mid x) = \mathrm{softmax}_c\bigl(-s \lVert z - \bar z_c \rVert^2\bigr), \qquad
       \mu = \text{mean of } f \text{ over the training classes} $$

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        features: D, width of the embedding's output.
        scale: initial value of $s$, which is learned if the learner is meta-trained.
        objective, batchnorm: as in `protonet`; the paper's BatchNorm is "running".

    Returns:
        A learner for any number of ways and shots. $\mu$ is 0 until `training.fit_feature_statistics(learner, source)`
        measures it.

    Example:
        >>> learner = simpleshot(nn.Flatten(), features=2)
        >>> support = kshot.Batch.of(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0, 0.0]])).detach()
        tensor([[  0., -20.]])

    References:
        Wang, Chao, Weinberger, van der Maaten: SimpleShot, arXiv:1911.04623 (CL2N).

    Deviations:
        The scale, which the paper does not need to choose a class, turns distances into probabilities.
    """
    head = Centred(Prototypes(Scaled(euclidean, scale)), features)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
