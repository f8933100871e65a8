"""A linear probe of a frozen embedding, with a prior that is measured on the training classes.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveFraction
from kshot.argument_checks import check_arguments
from kshot.inner.convex import logistic
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.closed_form import DualLinear, Linear, Ridge
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.plda import Plda
from kshot.objectives import Objective
from kshot.supplied import FeatureCount, FrozenEmbedding
from kshot.types import Tree


class Probe(Plda):
    r"""The sum of a linear head's scores and those of `Plda`; see `probe`.

    The state is `{"plda": …, "linear": …}`, of the two.

    Args:
        linear: the linear head.
        features, within, between, scale: as in `Plda`.

    Attributes:
        sizes: (2,), root mean squared lengths of centred features and of the same in the axes, over training examples;
            1 until they are measured.
    """

    sizes: Tensor

    def __init__(self, linear: Linear, features: int, *, within: float, between: float, scale: float) -> None:
        super().__init__(features, within=within, between=between, scale=scale)
        self.linear = linear
        self.register_buffer("sizes", torch.ones(2))

    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        super().measure(feat_ND, target_NC, weight_N)
        for number, part in enumerate((feat_ND - self.centre, self._in_axes(feat_ND))):
            square_N = part.double().square().sum(1) if part.device.type != "mps" else part.square().sum(1)
            self.sizes[number] = ((weight_N.to(square_N.dtype) @ square_N) / weight_N.sum()).sqrt()

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return {
            "plda": super().fit(feat_ND, target_NC, weight_N),
            "linear": self.linear.fit(self._both(feat_ND), target_NC, weight_N),
        }

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return super().predict(state["plda"], feat_MD) + self.linear.predict(state["linear"], self._both(feat_MD))

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return {
            "plda": super().fit(feat_ND, target_NC, weight_N),
            "linear": self.linear.statistics(self._both(feat_ND), target_NC, weight_N),
        }

    def merge(self, old: Tree, new: Tree) -> Tree:
        return {
            "plda": super().merge(old["plda"], new["plda"]),
            "linear": self.linear.merge(old["linear"], new["linear"]),
        }

    def fit_statistics(self, statistics: Tree) -> Tree:
        return {"plda": statistics["plda"], "linear": self.linear.fit_statistics(statistics["linear"])}

    def _in_axes(self, feat_ND: Tensor) -> Tensor:
        return self.change_axes(feat_ND) * (self.spread / (1 + 2 * self.spread)).sqrt().to(feat_ND.dtype)

    def _both(self, feat_ND: Tensor) -> Tensor:
        """Centred features, and the same in the axes (N, 2 D), both at a mean squared length of 1."""
        plain_size, size = self.sizes.to(feat_ND.dtype)
        plain_ND = (feat_ND - self.centre.to(feat_ND.dtype)) / plain_size
        return torch.cat([plain_ND, self._in_axes(feat_ND) / size], 1)


@check_arguments
def probe(
    embedding: FrozenEmbedding,
    *,
    features: FeatureCount,
    base: Literal["logistic", "ridge"] = "logistic",
    l2: PositiveFloat | None = None,
    scale: PositiveFloat = 1.0,
    within: PositiveFraction = 0.9,
    between: PositiveFraction = 0.6,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""A linear probe whose prior and temperature come from the training classes, and whose penalty is meta-learned.

    $$ \hat y = s \, W z + t \, \mathrm{plda}(f), \qquad
       \min_W \; \sum_i \mathrm{CE}\bigl(\mathrm{softmax}(W z_i), y_i\bigr) + \tfrac\lambda2 \lVert W \rVert^2 $$

    $\mathrm{plda}$ are the log-likelihood ratios of `plda`, which is best where examples are few, and the rest is
    `logistic_regression`, which is best where they are many or classes are. The prior of its weights is normal: its
    inner products $z^\top z'$ are the mean of those of features, and of those that say in the model of `plda` whether
    two examples are of one class,

    $$ z^\top z' \propto \frac{(f - \mu)^\top (f' - \mu)}{\mathrm{E} \lVert f - \mu \rVert^2}
       + \frac{g^\top D g'}{\mathrm{E} \lVert D^{1/2} g \rVert^2}, \qquad g = A^\top (f - \mu), \quad
       D = \mathrm{diag}\Bigl(\frac{b}{1 + 2 b}\Bigr), $$

    where $\mu$ is the mean of the training classes, and in the axes A examples of one class vary by I, and class means
    independently by $b$.

    Args:
        embedding, features, objective, batchnorm: as in `plda`.
        base: "logistic" as above, or "ridge", the regression of `r2d2`.
        l2: initial value of $\lambda$; None for 0.1, or 1 for "ridge".
        scale: factor on the initial values of $s$ and $t$.
        within, between: shrinkage of the two covariances, as in `plda`.

    Returns:
        A learner for any number of ways and shots. The constants of the training classes are measured by
        `training.fit_feature_statistics(learner, source)`; $\lambda$, $s$ and $t$ are learned, by their logarithms, if
        the learner is meta-trained, for which a rate of 0.02 suits. It is meant to be used without, too: the initial
        values suit features of encoders of texts and of images.

    Example:
        >>> learner = probe(nn.Flatten(), features=1)
        >>> support = kshot.Batch.of(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0]])).argmax(1)
        tensor([1])

    References:
        Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, ICLR 2019,
        arXiv:1805.08136; Ioffe: Probabilistic Linear Discriminant Analysis, ECCV 2006.

    Deviations:
        The sum, the prior and the initial values are new; see `logistic_regression` and `plda` for the rest.
    """
    linear: Linear
    if base == "ridge":
        linear = Ridge(l2 or 1.0, 10.0 * scale, normalize=True)
    else:
        linear = DualLinear(partial(logistic, steps=15), l2 or 0.1, 2.0 * scale, normalize=True)
    head = Probe(linear, features, within=within, between=between, scale=0.04 * scale)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
