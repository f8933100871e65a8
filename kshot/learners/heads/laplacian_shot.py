"""LaplacianShot: label propagation between the queries of a task.

It is transductive: a prediction depends on the other queries, so all queries of a task belong in one call of `predict`;
padding does not, unless its weight is given (see `kshot.query_weight`). Its figures are not comparable to inductive
ones.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.distances import class_means, euclidean, reference_point, relative
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.simpleshot import Centred
from kshot.objectives import Objective, only_present
from kshot.query_weight import current_query_weight
from kshot.supplied import Embedding, FeatureCount
from kshot.types import Tree


class Laplacian(Head):
    r"""Class means, and query labels that agree with the nearest means and with the labels of neighbouring queries.

    Args:
        neighbours: $k$, the number of neighbours of a query, itself not counted.
        smoothness: $\lambda$.
        steps: number of steps of the bound optimiser.
    """

    transductive = True

    @check_arguments
    def __init__(self, neighbours: PositiveInt, smoothness: NonNegativeFloat, steps: NonNegativeInt) -> None:
        super().__init__()
        self.neighbours, self.smoothness, self.steps = neighbours, smoothness, steps

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        reference_D = reference_point(feat_ND, weight_N)
        prototype_CD = class_means(feat_ND - reference_D, target_NC, weight_N)
        return {"prototypes": prototype_CD, "reference": reference_D, "present": present_C}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        feat_MD = relative(feat_MD, state)
        near_MC = only_present(euclidean(feat_MD, state["prototypes"]), state["present"])
        graph_MM = self._neighbour_graph(feat_MD)
        logit_MC = near_MC
        for _ in range(self.steps):
            logit_MC = near_MC + self.smoothness * graph_MM @ logit_MC.softmax(1)
        return logit_MC

    def _neighbour_graph(self, feat_MD: Tensor) -> Tensor:
        """(M, M), 1 where the query of the column is among the nearest of the query of the row, else 0.

        Neither the query itself nor a query of weight 0 is a neighbour.
        """
        count = len(feat_MD)
        itself_MM = torch.eye(count, dtype=torch.bool, device=feat_MD.device)
        excluded_MM = itself_MM | (current_query_weight(count, like=feat_MD) == 0)
        distance_MM = torch.where(excluded_MM, torch.inf, -euclidean(feat_MD, feat_MD).detach())
        nearest = distance_MM.topk(min(self.neighbours, count - 1), largest=False)
        return torch.zeros_like(distance_MM).scatter(1, nearest.indices, nearest.values.isfinite().to(feat_MD.dtype))


def laplacian_shot(
    embedding: Embedding,
    *,
    features: FeatureCount,
    neighbours: PositiveInt = 2,
    smoothness: NonNegativeFloat = 1.0,
    steps: NonNegativeInt = 20,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""LaplacianShot, transductive: SimpleShot with labels that are propagated between neighbouring queries.

    $$ \min_{Y} \; \sum_m y_m^\top a_m + \frac\lambda2 \sum_{m, p} w_{mp} \lVert y_m - y_p \rVert^2, \qquad
       y_m \leftarrow \mathrm{softmax}\Bigl(-a_m + \lambda \sum_p w_{mp} y_p\Bigr), \quad
       y_m \leftarrow \mathrm{softmax}(-a_m) \text{ at first} $$

    $a_{mc} = \lVert z_m - \bar z_c \rVert^2$ for features $z$ that are centred and of unit length, as in `simpleshot`;
    $w_{mp} = 1$ if p is among the k nearest queries of m, without m itself, else 0. The updates are those of the
    paper's bound on the objective, to which an entropy of the labels is added. The prediction is the argument of the
    last softmax.

    Args:
        embedding, features, objective, batchnorm: as in `simpleshot`.
        neighbours: $k$, without the query itself; the authors' 3 include it.
        smoothness: $\lambda$; the paper chooses it on validation tasks, from 0.1 to 1.5.
        steps: number of updates of all labels.

    Returns:
        A transductive learner for any number of ways and shots. The centre is 0 until `training.fit_feature_statistics`
        measures it.

    Example:
        >>> learner = laplacian_shot(nn.Flatten(), features=2)
        >>> learner.transductive
        True

    References:
        Ziko, Dolz, Granger, Ben Ayed: Laplacian Regularized Few-Shot Learning, ICML 2020, arXiv:2006.15486.

    Deviations:
        Class means are not rectified by the queries' confident predictions. All steps are taken, where the authors'
        code stops once the bound has converged.
    """
    head = Centred(Laplacian(neighbours, smoothness, steps), features)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
