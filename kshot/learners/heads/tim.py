"""TIM: class weights that maximise the mutual information between the queries of a task and their labels.

It is transductive: a prediction depends on the other queries, so all queries of a task belong in one call of `predict`;
padding does not, unless its weight is given (see `kshot.query_weight`). Its figures are not comparable to inductive
ones.

Shape legend: N support rows, M query rows, R = N + M, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from kshot import objectives
from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.distances import unit
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective, only_present
from kshot.query_weight import current_query_weight
from kshot.supplied import Embedding
from kshot.types import Tree


class MutualInformation(Head):
    r"""Class weights, alternately with soft labels of the queries; see `tim`.

    The state is that of `Head.statistics`: the rows of the support set.

    Args:
        temperature: $\tau$, the factor on squared distances.
        support: $\lambda$, the weight of the cross-entropy of the support set.
        conditional: $\alpha$, the weight of the entropy of each query's label.
        marginal: $\eta$, the weight of the entropy of all queries' labels.
        steps: number of updates.
    """

    transductive = True

    @check_arguments
    def __init__(
        self,
        temperature: PositiveFloat,
        support: PositiveFloat,
        conditional: NonNegativeFloat,
        marginal: NonNegativeFloat,
        steps: NonNegativeInt,
    ) -> None:
        super().__init__()
        self.temperature, self.support, self.steps = temperature, support, steps
        self.conditional, self.marginal = conditional, marginal

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.statistics(feat_ND, target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        """Class weights are linear combinations of all rows R, which the inner products of the rows suffice to find."""
        feat_ND, weight_N, weight_M = state["features"], state["weight"], current_query_weight(len(feat_MD), feat_MD)
        feat_RD = unit(torch.cat([feat_ND, feat_MD]))
        gram_RR = feat_RD @ feat_RD.mT
        share_NC = state["targets"] * weight_N[:, None]
        present_C = share_NC.sum(0) > 0
        of_support = self.support / (1 + self.conditional)
        of_queries = weight_N.sum() / weight_M.sum().clamp_min(1e-12)
        size_R1 = torch.cat([of_support * weight_N, of_queries * weight_M])[:, None]
        part_CR = pad((share_NC / share_NC.sum(0).clamp_min(1e-12)).mT, (0, len(feat_MD)))
        for _ in range(self.steps):
            prob_RC = only_present(self._logits(part_CR, gram_RR), present_C).softmax(1)
            label_MC = self._labels(prob_RC[len(feat_ND) :], weight_M)
            label_RC = size_R1 * torch.cat([state["targets"], label_MC])
            prob_RC = size_R1 * prob_RC
            total_CR = (label_RC - prob_RC).mT + prob_RC.sum(0)[:, None] * part_CR
            part_CR = total_CR / label_RC.sum(0).clamp_min(1e-12)[:, None]
        return self._logits(part_CR, gram_RR)[len(feat_ND) :]

    def _labels(self, prob_MC: Tensor, weight_M: Tensor) -> Tensor:
        """The soft labels of the queries that are best for the present class weights."""
        sharp_MC = prob_MC ** (1 + self.conditional)
        total_C = weight_M @ sharp_MC
        label_MC = sharp_MC * total_C.where(total_C > 0, 1.0) ** (-self.marginal / (1 + self.marginal))
        return label_MC / label_MC.sum(1, keepdim=True)

    def _logits(self, part_CR: Tensor, gram_RR: Tensor) -> Tensor:
        near_CR = part_CR @ gram_RR
        square_C, square_R1 = (near_CR * part_CR).sum(1), gram_RR.diagonal()[:, None]
        return self.temperature / 2 * (2 * near_CR.mT - square_C - square_R1)


def tim(
    embedding: Embedding,
    *,
    temperature: PositiveFloat = 15.0,
    support: PositiveFloat = 0.1,
    conditional: NonNegativeFloat = 0.1,
    marginal: NonNegativeFloat = 1.0,
    steps: NonNegativeInt = 150,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""TIM, transductive: class weights that maximise the mutual information between the queries and their labels.

    $$ \min_W \; -\frac\lambda N \sum_{i \in \text{support}} \log p_{i y_i}
       + \eta \sum_c \bar p_c \log \bar p_c - \frac\alpha M \sum_m \sum_c p_{mc} \log p_{mc}, \qquad
       p_{mc} = \mathrm{softmax}_c\Bigl(-\frac\tau2 \lVert z_m - w_c \rVert^2\Bigr), \quad
       \bar p_c = \frac1M \sum_m p_{mc} $$

    for features $z$ of unit length. From the class means on, each step finds the best soft labels $q$ of the queries,
    and then weights (the paper's alternating direction method):

    $$ q_{mc} \propto p_{mc}^{1 + \alpha} \Bigl(\sum_m p_{mc}^{1 + \alpha}\Bigr)^{-\frac{\eta}{1 + \eta}}, \qquad
       w_c \leftarrow \frac{\frac{\lambda}{1 + \alpha} \sum_i \bigl(y_{ic} z_i + p_{ic} (w_c - z_i)\bigr)
       + \frac NM \sum_m \bigl(q_{mc} z_m + p_{mc} (w_c - z_m)\bigr)}
       {\frac{\lambda}{1 + \alpha} \sum_i y_{ic} + \frac NM \sum_m q_{mc}} $$

    The second term is least where the queries are of all classes in equal numbers, which is thereby **assumed**:
    queries of few classes are spread over all. A lower $\eta$ assumes less, and lets a class draw queries of others,
    which with one example of each costs more than it gains.

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        temperature: $\tau$.
        support: $\lambda$, the weight of the cross-entropy of the support set.
        conditional: $\alpha$, the weight of the entropy of each query's label.
        marginal: $\eta$, the weight of the entropy of all queries' labels; the paper's is 1.
        steps: number of steps.
        objective, batchnorm: as in `simpleshot`.

    Returns:
        A transductive learner for any number of ways and shots.

    Example:
        >>> learner = tim(nn.Flatten())
        >>> support = kshot.Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[3.0, 1.0], [1.0, 1.5]])).argmax(1)
        tensor([0, 1])

    References:
        Boudiaf, Ziko, Rony, Dolz, Piantanida, Ben Ayed: Transductive Information Maximization For Few-Shot Learning,
        NeurIPS 2020, arXiv:2008.11297 (TIM-ADM).
    """
    head = MutualInformation(temperature, support, conditional, marginal, steps)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
