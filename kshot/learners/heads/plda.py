"""PLDA: class means with a Gaussian prior that is measured on the training classes, and Bayes' rule.

Shape legend: N support rows, M query rows, D features, C classes, K training classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveFraction, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import widest_float
from kshot.learners.heads.distances import exp_as, log_parameter
from kshot.learners.heads.head import FeatureStatistics, SumsByClass
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective
from kshot.supplied import FeatureCount, FrozenEmbedding
from kshot.types import Tree


class ClassCovariances(FeatureStatistics):
    r"""Measures the covariances of features within and between the training classes.

    Args:
        features: D, width of the embedding's output.
        within: shrinkage of the covariance within classes towards a multiple of I, above 0, at most 1.
        between: the same for the covariance of class means.

    Attributes:
        centre: $\mu$, (D,).
        axes: (D, D), maps centred features to axes where the covariance within classes is I and the other is diagonal.
        spread: (D,), the variance of class means there. Until they are measured, the centre is 0, axes are I and
            spreads are 1.
    """

    batches = 64
    centre: Tensor
    axes: Tensor
    spread: Tensor

    @check_arguments
    def __init__(self, features: PositiveInt, *, within: PositiveFraction, between: PositiveFraction) -> None:
        super().__init__()
        self.within, self.between = within, between
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("axes", torch.eye(features))
        self.register_buffer("spread", torch.ones(features))

    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        wide = widest_float(feat_ND.device)
        feat_ND, target_NC, weight_N = feat_ND.to(wide), target_NC.to(wide), weight_N.to(wide)
        share_NK = target_NC * weight_N[:, None]
        count_K = share_NK.sum(0)
        share_NK, count_K = share_NK[:, count_K > 0], count_K[count_K > 0]
        if len(count_K) < 2 or not float(count_K.sum()) > len(count_K):
            raise ValueError("covariances need at least two training classes with two examples each")
        mean_KD = share_NK.mT @ feat_ND / count_K[:, None]
        centre = mean_KD.mean(0)
        deviation_ND = (feat_ND - share_NK @ mean_KD) * share_NK.sum(1, keepdim=True).sqrt()
        within_DD = _shrink(deviation_ND.mT @ deviation_ND / (count_K.sum() - len(count_K)), self.within)
        deviation_KD = mean_KD - centre
        between_DD = _shrink(deviation_KD.mT @ deviation_KD / (len(count_K) - 1), self.between)
        # One change of axes makes the first covariance I and the second diagonal.
        root_DD = torch.linalg.cholesky(within_DD)
        half_DD = torch.linalg.solve_triangular(root_DD, between_DD, upper=False)
        spread, rotation_DD = torch.linalg.eigh(torch.linalg.solve_triangular(root_DD, half_DD.mT, upper=False))
        self.centre.copy_(centre)
        self.axes.copy_(torch.linalg.solve_triangular(root_DD.mT, rotation_DD, upper=True))
        self.spread.copy_(spread)

    def change_axes(self, feat_ND: Tensor) -> Tensor:
        """Features relative to the centre, in the axes."""
        return (feat_ND - self.centre.to(feat_ND.dtype)) @ self.axes.to(feat_ND.dtype)


class Plda(SumsByClass, ClassCovariances):
    r"""Probabilistic linear discriminant analysis; see `plda`.

    The state is `{"sum": (C, D), "count": (C,)}` of each class, in the axes where the covariance within classes is I.

    Args:
        features, within, between: as in `ClassCovariances`.
        scale: initial value of the learned factor on log-likelihoods.
    """

    def __init__(self, features: int, *, within: float, between: float, scale: float) -> None:
        super().__init__(features, within=within, between=between)
        self.log_scale = log_parameter("scale", scale)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        share_NC = target_NC * weight_N[:, None]
        return {"sum": share_NC.mT @ self.change_axes(feat_ND), "count": share_NC.sum(0)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        sum_CD, count_C1 = state["sum"], state["count"][:, None]
        spread_D = self.spread.to(feat_MD.dtype)
        posterior_CD = spread_D / (1 + count_C1 * spread_D)  # variance of class means, given their examples
        mean_CD, var_CD = posterior_CD * sum_CD, 1 + posterior_CD
        feat_MD, prior_D = self.change_axes(feat_MD), 1 + spread_D
        seen_MC = _log_normal(feat_MD, mean_CD, var_CD)
        unseen_M1 = _log_normal(feat_MD, torch.zeros_like(mean_CD[:1]), prior_D[None])
        return exp_as(feat_MD, self.log_scale) * (seen_MC - unseen_M1)


def _shrink(covariance_DD: Tensor, share: float) -> Tensor:
    """A covariance, shrunk by a share towards a multiple of I with the same trace."""
    size = len(covariance_DD)
    eye_DD = torch.eye(size, dtype=covariance_DD.dtype, device=covariance_DD.device)
    round_DD = eye_DD * covariance_DD.diagonal().mean()
    return (1 - share) * covariance_DD + share * round_DD.clamp_min(torch.finfo(torch.float32).tiny)


def _log_normal(feat_MD: Tensor, mean_CD: Tensor, var_CD: Tensor) -> Tensor:
    r"""$\log N(f_m; \mu_c, \mathrm{diag}(\sigma_c^2))$ up to a constant, (M, C)."""
    centre_D = mean_CD.detach().mean(0)  # digits, as in `euclidean`
    feat_MD, mean_CD, precision_CD = feat_MD - centre_D, mean_CD - centre_D, 1 / var_CD
    square_MC = feat_MD.square() @ precision_CD.mT - 2 * feat_MD @ (mean_CD * precision_CD).mT
    return -0.5 * (square_MC + (mean_CD.square() * precision_CD + var_CD.log()).sum(1))


def plda(
    embedding: FrozenEmbedding,
    *,
    features: FeatureCount,
    within: PositiveFraction = 0.9,
    between: PositiveFraction = 0.6,
    scale: PositiveFloat = 1.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""Probabilistic linear discriminant analysis: Bayes' rule with a prior that is measured on the training classes.

    $$ f \mid c \sim N(m_c, W), \quad m_c \sim N(\mu, B); \qquad
       \hat y_c = s \, \log \frac{p(f \mid x_{\text{support of } c})}{p(f \mid \text{a class never seen})} $$

    In axes where $W = I$ and $B$ is diagonal with entries $b$, a class with n examples that sum to $t$ has

    $$ p(f \mid \cdot) = N\Bigl(\tfrac{b}{1 + n b} \, t, \; 1 + \tfrac{b}{1 + n b}\Bigr). $$

    So directions in which classes differ count for more than those in which examples of one class do, and a class with
    one example is less certain than one with five. Since scores are relative to a class never seen,
    $-\log \sum_c \exp \hat y_c$ detects queries of none of the task's classes (see `kshot.evaluation.rejection`).

    Args:
        embedding, features, objective, batchnorm: as in `simpleshot`.
        within: shrinkage of $W$ towards a multiple of I, above 0, at most 1; it makes up for directions in which the
            training examples are too few to estimate $W$.
        between: the same for $B$. Choose both on validation tasks.
        scale: initial value of $s$, which is learned if the learner is meta-trained.

    Returns:
        A learner for any number of ways and shots. $\mu$ is 0 and $W = B = I$ until
        `training.fit_feature_statistics(learner, source)` measures them.

    Example:
        >>> learner = plda(nn.Flatten(), features=1)
        >>> support = kshot.Batch.of(torch.tensor([[-2.0], [2.0]]), torch.tensor([0, 1]), ways=2)
        >>> logits = learner.predict(learner.adapt(support), torch.tensor([[2.0], [20.0]])).detach()
        >>> logits.argmax(1), (logits.logsumexp(1) > 0)
        (tensor([1, 1]), tensor([ True, False]))

    References:
        Ioffe: Probabilistic Linear Discriminant Analysis, ECCV 2006; Prince, Elder: Probabilistic Linear Discriminant
        Analysis for Inferences About Identity, ICCV 2007.

    Deviations:
        $W$ and $B$ are shrunk moments, where the papers fit them by maximum likelihood; the scale is new.
    """
    head = Plda(features, within=within, between=between, scale=scale)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
