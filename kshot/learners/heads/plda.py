"""Classes as draws from one prior that is measured on the training classes, and Bayes' rule for those of a task.

Shape legend: N support rows, M query rows, D features, C classes, K training classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveFraction
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.metric import FeatureStatistics
from kshot.learners.heads.protonet import HeadLearner, added, log_parameter
from kshot.objectives import Objective
from kshot.types import Tree


class Plda(FeatureStatistics):
    r"""Probabilistic linear discriminant analysis; see `plda`.

    Its state is each class's `{"sum": (C, D), "count": (C,)}` in the space where classes have unit spread.

    Args:
        features: D, of the embedding.
        within: how far the spread within classes is shrunk towards a round one, 0 … 1.
        between: how far that of class means is.
        scale: where the learned factor on log-likelihoods starts.

    Attributes:
        centre: $\mu$, (D,).
        axes: (D, D), takes centred features to that space.
        spread: (D,), the variance of class means there. Until it is measured, features are taken as they come: the
            centre is 0, axes and spreads are 1.
    """

    batches = 64
    centre: Tensor
    axes: Tensor
    spread: Tensor

    def __init__(self, features: int, *, within: float, between: float, scale: float) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be the width of the embedding's output, at least 1, got {features}")
        for name, share in (("within", within), ("between", between)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} is a share above 0, at most 1, of a round spread, got {share}")
        self.within, self.between = within, between
        self.log_scale = log_parameter("scale", scale)
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("axes", torch.eye(features))
        self.register_buffer("spread", torch.ones(features))

    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        feat_ND, target_NC, weight_N = feat_ND.double(), target_NC.double(), weight_N.double()
        share_NK = target_NC * weight_N[:, None]
        count_K = share_NK.sum(0)
        share_NK, count_K = share_NK[:, count_K > 0], count_K[count_K > 0]
        if len(count_K) < 2 or not float(count_K.sum()) > len(count_K):
            raise ValueError("plda needs at least two training classes with two examples each to measure their spread")
        mean_KD = share_NK.mT @ feat_ND / count_K[:, None]
        centre = mean_KD.mean(0)
        away_ND = (feat_ND - share_NK @ mean_KD) * share_NK.sum(1, keepdim=True).sqrt()
        within_DD = _shrunk(away_ND.mT @ away_ND / (count_K.sum() - len(count_K)), self.within)
        away_KD = mean_KD - centre
        between_DD = _shrunk(away_KD.mT @ away_KD / (len(count_K) - 1), self.between)
        # One change of axes makes the first spread 1 and the second diagonal.
        root_DD = torch.linalg.cholesky(within_DD)
        half_DD = torch.linalg.solve_triangular(root_DD, between_DD, upper=False)
        spread, turned_DD = torch.linalg.eigh(torch.linalg.solve_triangular(root_DD, half_DD.mT, upper=False))
        self.centre.copy_(centre)
        self.axes.copy_(torch.linalg.solve_triangular(root_DD.mT, turned_DD, upper=True))
        self.spread.copy_(spread)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        share_NC = target_NC * weight_N[:, None]
        return {"sum": share_NC.mT @ self._turned(feat_ND), "count": share_NC.sum(0)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        sum_CD, count_C1 = state["sum"], state["count"][:, None]
        left_CD = self.spread / (1 + count_C1 * self.spread)  # of a class mean's variance, once its examples are seen
        mean_CD, var_CD = left_CD * sum_CD, 1 + left_CD
        feat_MD, prior_D = self._turned(feat_MD), 1 + self.spread
        seen_MC = _log_normal(feat_MD, mean_CD, var_CD)
        anew_M1 = _log_normal(feat_MD, torch.zeros_like(mean_CD[:1]), prior_D[None])
        return self.log_scale.exp() * (seen_MC - anew_M1)

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.fit(feat_ND, target_NC, weight_N)

    def merge(self, old: Tree, new: Tree) -> Tree:
        return added(old, new)

    def fit_statistics(self, memory: Tree) -> Tree:
        return memory

    def _turned(self, feat_ND: Tensor) -> Tensor:
        return (feat_ND - self.centre) @ self.axes


def _shrunk(spread_DD: Tensor, share: float) -> Tensor:
    """A covariance, a share of it in favour of a round one of the same trace."""
    size = len(spread_DD)
    round_DD = torch.eye(size, dtype=spread_DD.dtype, device=spread_DD.device) * spread_DD.diagonal().mean()
    return (1 - share) * spread_DD + share * round_DD.clamp_min(torch.finfo(torch.float32).tiny)


def _log_normal(feat_MD: Tensor, mean_CD: Tensor, var_CD: Tensor) -> Tensor:
    r"""$\log N(f_m; \mu_c, \mathrm{diag}(\sigma_c^2))$ up to a constant, (M, C)."""
    sure_CD = 1 / var_CD
    square_MC = feat_MD.square() @ sure_CD.mT - 2 * feat_MD @ (mean_CD * sure_CD).mT
    return -0.5 * (square_MC + (mean_CD.square() * sure_CD + var_CD.log()).sum(1))


def plda(
    embedding: nn.Module,
    *,
    features: int,
    within: PositiveFraction = 0.9,
    between: PositiveFraction = 0.6,
    scale: PositiveFloat = 1.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""Probabilistic linear discriminant analysis: Bayes' rule, with a prior that is measured on the training classes.

    $$ f \mid c \sim N(m_c, W), \quad m_c \sim N(\mu, B); \qquad
       \hat y_c = s \, \log \frac{p(f \mid x_{\text{support of } c})}{p(f \mid \text{a class never seen})} $$

    In axes where $W = I$ and $B$ is diagonal with entries $b$, a class with n examples that sum to $t$ has

    $$ p(f \mid \cdot) = N\Bigl(\tfrac{b}{1 + n b} \, t, \; 1 + \tfrac{b}{1 + n b}\Bigr). $$

    So directions in which classes differ count for more than those in which examples of one class do, and one example
    is trusted less than five. Since scores are against a class never seen, $-\log \sum_c \exp \hat y_c$ tells what
    belongs to none of the task's classes (see `kshot.evaluation.rejection`).

    Args:
        embedding: pretrained: inputs (n, ...) to features (n, ...).
        features: D, how many features that makes for an example.
        within: the share of $W$ that is a round spread of the same size, above 0, at most 1. It stands for what so many
            features leave unknown.
        between: the same of $B$. Choose both on validation tasks.
        scale: $s$, where it starts; it is learned if the learner is meta-trained.
        objective: what the tasks ask.
        batchnorm: "running", "support" (inductive) or "query" (transductive).

    Returns:
        A learner for any number of ways and shots. $\mu$ is 0 and $W = B = I$ until
        `training.fit_feature_statistics(learner, source)` measures them.

    Raises:
        ValueError: numbers out of bounds.

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
        $W$ and $B$ are moments, shrunk, where the papers fit them by maximum likelihood; the scale is new.
    """
    head = Plda(features, within=within, between=between, scale=scale)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
