"""Prototypical networks.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kshot import objectives
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.distances import (
    Distance,
    Scaled,
    class_means,
    cosine,
    euclidean,
    is_translation_invariant,
    reference_of,
    reference_point,
    relative,
)
from kshot.learners.heads.head import Head, sum_by_class
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective
from kshot.supplied import Embedding
from kshot.types import Tree


class Prototypes(Head):
    r"""The mean $p_c$ of each class, and the distance to it.

    The state is `{"prototypes": (C, D), "reference": (D,)}`: class means relative to the mean of the support set, so
    that features far from the origin lose no digits. Where the distance depends on the origin, as the cosine does and
    one of the user's may, there is no reference, and the class means are those of the features.

    Args:
        distance: "euclidean" (squared), "cosine" with a scale that is learned, from 10, or a `Distance`.
    """

    fits_parts = True

    def __init__(self, distance: Literal["euclidean", "cosine"] | Distance = "euclidean") -> None:
        super().__init__()
        distances: dict[str, Distance] = {"euclidean": euclidean, "cosine": Scaled(cosine)}
        if isinstance(distance, str) and distance not in distances:
            raise ValueError(
                f"distance must be 'euclidean', 'cosine' or a function (feat_MD, proto_CD) -> logits, got {distance!r}"
            )
        self.distance: Distance = distances[distance] if isinstance(distance, str) else distance

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        reference = self._reference(feat_ND, weight_N)
        return {"prototypes": class_means(relative(feat_ND, reference), target_NC, weight_N)} | reference

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        share_NC = target_NC * weight_N[:, None]
        reference = self._reference(feat_ND, weight_N)
        return {"sum": share_NC.mT @ relative(feat_ND, reference), "count": share_NC.sum(0)} | reference

    def merge(self, old: Tree, new: Tree) -> Tree:
        shift = new.get("reference", 0.0) - old.get("reference", 0.0)
        moved = {"sum": new["sum"] + new["count"][:, None] * shift, "count": new["count"]}
        return sum_by_class(old, moved) | reference_of(old)

    def fit_statistics(self, statistics: Tree) -> Tree:
        mean_CD = statistics["sum"] / statistics["count"].clamp_min(1e-12)[:, None]
        return {"prototypes": mean_CD} | reference_of(statistics)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return self.distance(relative(feat_MD, state), state["prototypes"])

    def _reference(self, feat_ND: Tensor, weight_N: Tensor) -> Tree:
        return {"reference": reference_point(feat_ND, weight_N)} if is_translation_invariant(self.distance) else {}


def protonet(
    embedding: Embedding,
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
        distance: "euclidean" (squared, the paper's), "cosine" with a learned scale, or a function of features (M, D)
            and class means (C, D) that returns logits (M, C).
        objective: loss and metrics of the tasks.
        batchnorm: "support" (inductive), "query" (transductive), "running" or "tasknorm".

    Returns:
        A learner for any number of ways and shots.

    Raises:
        ValueError: an unknown distance.

    Example:
        >>> learner = protonet(nn.Flatten())
        >>> support = kshot.Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]]))
        tensor([[-1., -9.]])
        >>> learner = protonet(nn.Flatten(), distance=lambda feat, proto: -torch.cdist(feat, proto, p=1))
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]]))
        tensor([[-1., -3.]])

    References:
        Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175.

    Deviations:
        The paper's code trains with BatchNorm on the statistics of each batch and tests with running ones; here both
        use the support statistics by default.
    """
    return HeadLearner(embedding, Prototypes(distance), objective, batchnorm=batchnorm)
