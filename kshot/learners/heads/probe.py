"""A linear probe of a frozen embedding, with a prior that is measured on the training classes.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveFraction
from kshot.argument_checks import check_arguments
from kshot.inner.convex import logistic
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.closed_form import DualLinear, Linear, Ridge
from kshot.learners.heads.head_learner import Head, HeadLearner
from kshot.learners.heads.plda import ClassCovariances
from kshot.objectives import Objective
from kshot.supplied import FeatureCount, FrozenEmbedding
from kshot.types import Tree


class InClassAxes(ClassCovariances):
    r"""Fits a head to features in which the training classes vary equally in all directions that matter to a new class.

    In the axes where the covariance within classes is I, and class means vary by $b_d$ along axis d, two examples are
    of the same class rather than of two with the log-odds $\sum_d \frac{b_d}{1 + 2 b_d} g_d g'_d$, plus terms of each
    example alone. The features are

    $$ f \mapsto \mathrm{diag}\bigl(b / (1 + 2 b)\bigr)^{1/2} A^\top (f - \mu), $$

    so that these log-odds are their inner product: a penalty on weights is then a Gaussian prior that expects new
    classes to differ as the training classes do.

    Args:
        head: the head to fit to them.
        features, within, between: as in `ClassCovariances`.
    """

    def __init__(self, head: Head, features: int, *, within: float, between: float) -> None:
        super().__init__(features, within=within, between=between)
        self.head = head
        self.scores_absent, self.transductive = head.scores_absent, head.transductive

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.fit(self._scaled(feat_ND), target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return self.head.predict(state, self._scaled(feat_MD))

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.statistics(self._scaled(feat_ND), target_NC, weight_N)

    def merge(self, old: Tree, new: Tree) -> Tree:
        return self.head.merge(old, new)

    def fit_statistics(self, statistics: Tree) -> Tree:
        return self.head.fit_statistics(statistics)

    def _scaled(self, feat_ND: Tensor) -> Tensor:
        return self.change_axes(feat_ND) * (self.spread / (1 + 2 * self.spread)).sqrt().to(feat_ND.dtype)


@check_arguments
def probe(
    embedding: FrozenEmbedding,
    *,
    features: FeatureCount,
    base: Literal["logistic", "ridge"] = "logistic",
    l2: PositiveFloat | None = None,
    scale: PositiveFloat | None = None,
    within: PositiveFraction = 0.9,
    between: PositiveFraction = 0.6,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""A linear probe whose prior, penalty and temperature come from the training classes.

    $$ \min_W \; \sum_i \mathrm{CE}\bigl(\mathrm{softmax}(W z_i), y_i\bigr) + \tfrac\lambda2 \lVert W \rVert^2, \qquad
       z_i = [D^{1/2} A^\top (f(x_i) - \mu) / u, 1], \qquad \hat y = s \, W z $$

    where, in the axes A, examples of one training class vary equally and class means independently, by $b$, and
    $D = b / (1 + 2 b)$: see `InClassAxes`. With strong penalties this is the classifier of `plda` for one shot, with
    weak ones logistic regression. $u$ is as in `logistic_regression`.

    Args:
        embedding, features, objective, batchnorm: as in `plda`.
        base: "logistic" as above, or "ridge", the regression of `r2d2`.
        l2: initial value of $\lambda$; None for 0.1, or 1 for "ridge".
        scale: initial value of the temperature's inverse $s$; None for 4, or 20 for "ridge". $\lambda$ and $s$ are
            learned, by their logarithms, if the learner is meta-trained; a rate of 0.02 suits them.
        within, between: shrinkage of the two covariances, as in `plda`.

    Returns:
        A learner for any number of ways and shots. $\mu$ is 0, A is I and $b$ is 1, so that it is
        `logistic_regression`, until `training.fit_feature_statistics(learner, source)` measures them.

    Example:
        >>> from torch import nn
        >>> import kshot
        >>> learner = probe(nn.Flatten(), features=1)
        >>> support = kshot.Batch.of(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0]])).argmax(1)
        tensor([1])

    References:
        Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, ICLR 2019,
        arXiv:1805.08136; Ioffe: Probabilistic Linear Discriminant Analysis, ECCV 2006.

    Deviations:
        The features and the initial values are new; see `logistic_regression` and `plda` for the rest.
    """
    head: Linear
    if base == "ridge":
        head = Ridge(l2 or 1.0, scale or 20.0, normalize=True)
    else:
        head = DualLinear(partial(logistic, steps=15), l2 or 0.1, scale or 4.0, normalize=True)
    head_in_axes = InClassAxes(head, features, within=within, between=between)
    return HeadLearner(embedding, head_in_axes, objective, batchnorm=batchnorm)
