"""PT-MAP: optimal transport of the queries of a task to its classes, and class centres that follow.

It is transductive: a prediction depends on the other queries, so all queries of a task belong in one call of `predict`;
padding does not, unless its weight is given (see `kshot.query_weight`). Its figures are not comparable to inductive
ones.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveFloat, PositiveFraction
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import widest_float
from kshot.learners.heads.distances import class_means, euclidean, log_weight, unit
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective
from kshot.query_weight import current_query_weight
from kshot.supplied import Embedding
from kshot.types import Tree

Prior = Literal["uniform", "support"] | Sequence[PositiveFloat] | None
"""The shares of the classes among the queries: equal, as in the support, as given, or unknown."""

OFFSET = 1e-6  # of features before the power, which has no finite derivative at 0
SINKHORN = 40  # scalings of a transport plan


class Transport(Head):
    r"""Transports queries to class centres, and moves the centres to what they receive; see `pt_map`.

    The state is that of `Head.statistics`: the rows of the support set.

    Args:
        power: $\beta$.
        sharpness: $\lambda$, the factor on squared distances.
        rate: $\alpha$, the part of the way that a centre moves in a step.
        steps: number of steps.
        prior: the shares of the classes among the queries.
    """

    transductive = True

    @check_arguments
    def __init__(
        self,
        power: PositiveFraction,
        sharpness: PositiveFloat,
        rate: PositiveFraction,
        steps: NonNegativeInt,
        prior: Prior,
    ) -> None:
        super().__init__()
        self.power, self.sharpness, self.rate, self.steps, self.prior = power, sharpness, rate, steps, prior

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.statistics(feat_ND, target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        wide = widest_float(feat_MD.device)  # what many scalings amplify is the rounding of distances
        weight_M = current_query_weight(len(feat_MD), feat_MD)
        state = {name: leaf.to(wide) for name, leaf in state.items()}
        return self._transported(state, feat_MD.to(wide), weight_M.to(wide)).to(feat_MD.dtype)

    def _transported(self, state: Tree, feat_MD: Tensor, weight_M: Tensor) -> Tensor:
        target_NC, weight_N = state["targets"], state["weight"]
        feat_ND = _centred(power_transform(state["features"], self.power), weight_N)
        feat_MD = _centred(power_transform(feat_MD, self.power), weight_M)
        count_C = weight_N @ target_NC
        sum_CD = (target_NC * weight_N[:, None]).mT @ feat_ND
        centre_CD = class_means(feat_ND, target_NC, weight_N)
        row_M, column_C = log_weight(weight_M), self._columns(count_C, weight_M.sum())
        price_C = log_weight((count_C > 0).to(feat_MD.dtype))
        logit_MC = price_C
        for step in range(self.steps + 1):
            if step:
                plan_MC = weight_M[:, None] * logit_MC.softmax(1)
                received_C1 = (count_C + plan_MC.sum(0)).clamp_min(1e-12)[:, None]
                centre_CD = centre_CD + self.rate * ((sum_CD + plan_MC.mT @ feat_MD) / received_C1 - centre_CD)
            near_MC = self.sharpness * euclidean(feat_MD, centre_CD)
            if column_C is not None:
                for _ in range(SINKHORN):  # from the prices of the last step
                    scale_M = row_M - (near_MC + price_C).logsumexp(1)
                    price_C = column_C - (near_MC + scale_M[:, None]).logsumexp(0)
            logit_MC = near_MC + price_C
        return logit_MC

    def _columns(self, count_C: Tensor, total: Tensor) -> Tensor | None:
        """Logarithms (C,) of how many queries each class is to receive, of all of them; None if that is unknown."""
        if self.prior is None:
            return None
        if self.prior == "support":
            share_C = count_C
        elif self.prior == "uniform":
            share_C = torch.ones_like(count_C)
        else:
            if len(self.prior) != len(count_C):
                raise ValueError(f"prior has {len(self.prior)} shares, and the task has {len(count_C)} classes")
            share_C = count_C.new_tensor([float(share) for share in self.prior])
        share_C = share_C * (count_C > 0)
        return log_weight(total * share_C / share_C.sum().clamp_min(1e-12))


def power_transform(feat_ND: Tensor, power: float) -> Tensor:
    r"""$(f + 10^{-6})^\beta$ at unit length; its graph for negative features is that for others, turned about 0."""
    at_0 = OFFSET**power
    raised_ND = (feat_ND.abs() + OFFSET) ** power - at_0
    return unit(at_0 + feat_ND.sign() * raised_ND)


def _centred(feat_ND: Tensor, weight_N: Tensor) -> Tensor:
    """Features less their mean, at unit length."""
    return unit(feat_ND - weight_N @ feat_ND / weight_N.sum().clamp_min(1e-12))


def pt_map(
    embedding: Embedding,
    *,
    power: PositiveFraction = 0.5,
    sharpness: PositiveFloat = 10.0,
    rate: PositiveFraction = 0.2,
    steps: NonNegativeInt = 20,
    prior: Prior = "uniform",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""PT-MAP, transductive: a power transform, and class centres that follow the optimal transport of the queries.

    $$ P = \arg\max_P \; -\lambda \sum_{mc} P_{mc} \lVert z_m - \mu_c \rVert^2 - \sum_{mc} P_{mc} \log P_{mc}, \quad
       \sum_c P_{mc} = 1, \quad \sum_m P_{mc} = M \pi_c; \qquad
       \mu_c \leftarrow (1 - \alpha) \mu_c + \alpha \,
       \frac{\sum_i y_{ic} z_i + \sum_m P_{mc} z_m}{\sum_i y_{ic} + \sum_m P_{mc}} $$

    from the class means on. $z$ is $(f + 10^{-6})^\beta$ at unit length, less the mean over the support, or over the
    queries, and at unit length again: features after a ReLU are skewed, and become more like a normal distribution. The
    logits are those of the last $P$.

    With the paper's `prior="uniform"` it is **assumed that the queries are of all classes in equal numbers**, as in
    most benchmarks and hardly ever in use. Where they are not, it makes errors that other learners do not make. Taking
    off the mean of the queries assumes it too, whatever the prior.

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        power: $\beta$, above 0, at most 1.
        sharpness: $\lambda$.
        rate: $\alpha$, above 0, at most 1.
        steps: number of updates of the centres.
        prior: $\pi$: "uniform", "support" for the shares of classes in the support set, numbers in the order of the
            classes, or None to leave the shares free.
        objective, batchnorm: as in `simpleshot`.

    Returns:
        A transductive learner for any number of ways and shots.

    Raises:
        ValueError: at prediction, a prior with another number of shares than the task has classes.

    Example:
        >>> learner = pt_map(nn.Flatten())
        >>> support = kshot.Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
        >>> queries = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.9]])
        >>> learner.predict(learner.adapt(support), queries).argmax(1)
        tensor([0, 0, 1, 1])

    References:
        Hu, Gripon, Pateux: Leveraging the Feature Distribution in Transfer-based Few-Shot Learning, ICANN 2021,
        arXiv:2006.03806; Cuturi: Sinkhorn Distances, NeurIPS 2013.

    Deviations:
        A fixed number of scalings of the plan, where the authors' code scales until it has converged. Features below 0,
        which the paper's networks do not give, are transformed by a continuation that is smooth at 0. Features are not
        rotated to fewer dimensions, which changes no distance.
    """
    return HeadLearner(embedding, Transport(power, sharpness, rate, steps, prior), objective, batchnorm=batchnorm)
