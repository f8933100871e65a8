"""TIM: class weights that maximise the mutual information between the queries of a task and their labels.

It is transductive: a prediction depends on the other queries, so all queries of a task belong in one call of `predict`;
padding does not, unless its weight is given (see `kshot.query_weight`). Its figures are not comparable to inductive
ones.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from torch import Tensor

from kshot import objectives
from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.distances import class_means, euclidean
from kshot.learners.heads.head_learner import Head, HeadLearner
from kshot.learners.heads.simpleshot import Centred
from kshot.objectives import Objective, only_present
from kshot.query_weight import current_query_weight
from kshot.supplied import Embedding, FeatureCount
from kshot.types import Tree


class MutualInformation(Head):
    r"""Class weights, alternately with soft labels of the queries; see `tim`.

    The state is that of `Head.statistics`: the rows of the support set.

    Args:
        temperature: $\tau$, the factor on squared distances.
        support: $\lambda$, the weight of the cross-entropy of the support set.
        conditional: $\alpha$, the weight of the entropy of each query's label.
        steps: number of updates.
    """

    transductive = True

    @check_arguments
    def __init__(
        self,
        temperature: PositiveFloat,
        support: PositiveFloat,
        conditional: NonNegativeFloat,
        steps: NonNegativeInt,
    ) -> None:
        super().__init__()
        self.temperature, self.support, self.conditional, self.steps = temperature, support, conditional, steps

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.statistics(feat_ND, target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        feat_ND, weight_N, weight_M = state["features"], state["weight"], current_query_weight(len(feat_MD), feat_MD)
        share_NC = state["targets"] * weight_N[:, None]
        present_C = share_NC.sum(0) > 0
        of_support = self.support / (1 + self.conditional)
        of_queries = weight_N.sum() / weight_M.sum().clamp_min(1e-12)
        proto_CD = class_means(feat_ND, state["targets"], weight_N)
        for _ in range(self.steps):
            prob_NC = weight_N[:, None] * self._probabilities(feat_ND, proto_CD, present_C)
            prob_MC = self._probabilities(feat_MD, proto_CD, present_C)
            label_MC = weight_M[:, None] * self._labels(prob_MC, weight_M)
            prob_MC = weight_M[:, None] * prob_MC
            total_CD = of_support * ((share_NC - prob_NC).mT @ feat_ND + prob_NC.sum(0)[:, None] * proto_CD)
            total_CD = total_CD + of_queries * ((label_MC - prob_MC).mT @ feat_MD + prob_MC.sum(0)[:, None] * proto_CD)
            count_C = of_support * share_NC.sum(0) + of_queries * label_MC.sum(0)
            proto_CD = total_CD / count_C.clamp_min(1e-12)[:, None]
        return self._logits(feat_MD, proto_CD)

    def _labels(self, prob_MC: Tensor, weight_M: Tensor) -> Tensor:
        """The soft labels of the queries that are best for the present class weights."""
        sharp_MC = prob_MC ** (1 + self.conditional)
        total_C = weight_M @ sharp_MC
        label_MC = sharp_MC * total_C.where(total_C > 0, 1.0).rsqrt()
        return label_MC / label_MC.sum(1, keepdim=True)

    def _logits(self, feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
        return self.temperature / 2 * euclidean(feat_MD, proto_CD)

    def _probabilities(self, feat_MD: Tensor, proto_CD: Tensor, present_C: Tensor) -> Tensor:
        return only_present(self._logits(feat_MD, proto_CD), present_C).softmax(1)


def tim(
    embedding: Embedding,
    *,
    features: FeatureCount,
    temperature: PositiveFloat = 15.0,
    support: PositiveFloat = 0.1,
    conditional: NonNegativeFloat = 0.1,
    steps: NonNegativeInt = 150,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""TIM, transductive: class weights that maximise the mutual information between the queries and their labels.

    $$ \min_W \; -\frac\lambda N \sum_{i \in \text{support}} \log p_{i y_i}
       + \sum_c \bar p_c \log \bar p_c - \frac\alpha M \sum_m \sum_c p_{mc} \log p_{mc}, \qquad
       p_{mc} = \mathrm{softmax}_c\Bigl(-\frac\tau2 \lVert z_m - w_c \rVert^2\Bigr), \quad
       \bar p_c = \frac1M \sum_m p_{mc} $$

    for features $z$ that are centred and of unit length, as in `simpleshot`. From the class means on, each step finds
    the best soft labels $q$ of the queries, and then weights (the paper's alternating direction method):

    $$ q_{mc} \propto \frac{p_{mc}^{1 + \alpha}}{\sqrt{\sum_m p_{mc}^{1 + \alpha}}}, \qquad
       w_c \leftarrow \frac{\frac{\lambda}{1 + \alpha} \sum_i \bigl(y_{ic} z_i + p_{ic} (w_c - z_i)\bigr)
       + \frac NM \sum_m \bigl(q_{mc} z_m + p_{mc} (w_c - z_m)\bigr)}
       {\frac{\lambda}{1 + \alpha} \sum_i y_{ic} + \frac NM \sum_m q_{mc}} $$

    The second term is least where the queries are of all classes in equal numbers: a set of queries of few classes is
    spread over all.

    Args:
        embedding, features, objective, batchnorm: as in `simpleshot`.
        temperature: $\tau$.
        support: $\lambda$, the weight of the cross-entropy of the support set.
        conditional: $\alpha$, the weight of the entropy of each query's label.
        steps: number of steps.

    Returns:
        A transductive learner for any number of ways and shots. The centre is 0 until `training.fit_feature_statistics`
        measures it.

    Example:
        >>> learner = tim(nn.Flatten(), features=2)
        >>> support = kshot.Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[3.0, 1.0], [1.0, 1.5]])).argmax(1)
        tensor([0, 1])

    References:
        Boudiaf, Ziko, Rony, Dolz, Piantanida, Ben Ayed: Transductive Information Maximization For Few-Shot Learning,
        NeurIPS 2020, arXiv:2008.11297 (TIM-ADM).

    Deviations:
        Features are centred on the training classes before they are normalised, which the paper does not do.
    """
    head = Centred(MutualInformation(temperature, support, conditional, steps), features)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
