"""ALPaCA for ratings: Bayesian ridge regression of a new user's few ratings, with a meta-learned prior.

Shape legend: N support rows, M query rows, D features including one that is always 1, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import NonNegativeFloat, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import Function
from kshot.inner.precision import at_least_float32, in_type_of, widest_float
from kshot.learner import Learner
from kshot.learners.heads.distances import exp_as, reference_point, relative
from kshot.learners.pooling.posterior import posterior
from kshot.objectives import Objective, levels_of, refuse_parts, weighted_mean
from kshot.objectives.outputs import the_tensor
from kshot.supplied import Embedding, FeatureCount, UserFeatures
from kshot.types import Batch, Task, Tree


class Alpaca(Learner):
    """Bayesian linear regression on an embedding's features; see `alpaca`, which documents the arguments.

    The state is `{"mean": (D,), "prior_mean": (D,), "covariance": (D, D), "reference": (D,), "rows": (), "usage":
    (L,)}`: posterior mean, prior mean and posterior covariance of the user's weights, for features minus the reference
    (the mean of the user's), the number of ratings and, for levels, the number of ratings at each level.
    """

    values: Tensor

    def __init__(
        self,
        embedding: nn.Module,
        features: int,
        objective: Objective,
        *,
        noise: float,
        prior: float,
        hidden: int,
        item_penalty: float,
        user_features: int,
    ) -> None:
        super().__init__(objective)
        refuse_parts(objective, "alpaca")
        values = levels_of(objective)
        size = features + 1
        self.item_penalty, self.user_features = item_penalty, user_features
        self.embedding, self.function = embedding, Function(embedding, "running")
        self.prior_mean = nn.Parameter(F.one_hot(torch.tensor(0), size).float())
        self.choice_effect = nn.Parameter(torch.zeros(size, size))
        self.log_prior = nn.Parameter(torch.full((size,), float(prior)).log())
        self.log_noise = nn.Parameter(torch.tensor(float(noise)).log())
        self.register_buffer("values", torch.tensor(values or (0.0,)))
        self.readout = Readout(values, hidden, user_features) if values else None

    def forward(self, task: Task) -> Tensor:
        """The query loss after adapting, plus the embedding's `penalty` on the query's items, ()."""
        loss = super().forward(task)
        penalty = getattr(self.embedding, "penalty", None)
        if penalty is None or not self.item_penalty:
            return loss
        return loss + self.item_penalty * weighted_mean(penalty(task.query.inputs["item"]), task.query.weight)

    def _adapt(self, support: Batch) -> Tree:
        feat_ND = self._features(support.inputs)
        targets, weight_N = support.targets.to(feat_ND.dtype), support.weight.to(feat_ND.dtype)
        if support.targets.shape[1] != len(self.values):
            expected = f"{len(self.values)} levels" if self.readout else "one number"
            raise ValueError(f"this learner predicts {expected} a row, got targets {tuple(support.targets.shape)}")
        rating_N = targets @ self.values.to(targets.dtype) if self.readout else targets[:, 0]
        rows = weight_N.sum()
        chosen_D = weight_N @ feat_ND / (rows + CHOICE_SHRINKAGE)
        prior_mean_D = self.prior_mean.to(feat_ND.dtype) + chosen_D @ self.choice_effect.to(feat_ND.dtype)
        state = self._posterior(feat_ND, rating_N, weight_N, prior_mean_D) | {"rows": rows}
        return state | ({"usage": weight_N @ targets} if self.readout else {})

    def _posterior(self, feat_ND: Tensor, rating_N: Tensor, weight_N: Tensor, prior_mean_D: Tensor) -> Tree:
        """The posterior and the prior mean of the weights, for features relative to the mean of the support set.

        It is computed in the widest type of the device: where features are far from 0 (a year, for example), posterior
        variances are small differences of large numbers.
        """
        dtype, wide = feat_ND.dtype, widest_float(feat_ND.device)
        reference_D = F.pad(reference_point(feat_ND[:, :-1], weight_N), (0, 1))  # the feature that is always 1 stays
        feat_ND, rating_N, weight_N, prior_mean_D = (
            each.to(wide) for each in (feat_ND, rating_N, weight_N, prior_mean_D)
        )
        residual_N = rating_N - feat_ND @ prior_mean_D
        scales = exp_as(feat_ND, self.log_prior), exp_as(feat_ND, self.log_noise)
        mean_D, covariance_DD = posterior(feat_ND, residual_N, weight_N, *scales)
        eye_DD = torch.eye(len(reference_D), dtype=wide, device=feat_ND.device)
        move_DD = eye_DD + F.pad(reference_D.to(wide)[None], (0, 0, len(reference_D) - 1, 0))
        state = {"mean": move_DD @ (prior_mean_D + mean_D), "prior_mean": move_DD @ prior_mean_D}
        state |= {"covariance": move_DD @ covariance_DD @ move_DD.mT, "reference": reference_D}
        return {name: leaf.to(dtype) for name, leaf in state.items()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        feat_MD = relative(self._features(inputs), state)
        mean_M = feat_MD @ state["mean"]
        variance_M = ((feat_MD @ state["covariance"]) * feat_MD).sum(1).clamp_min(1e-8)
        if self.readout:
            rating_M3 = torch.stack([mean_M, variance_M.sqrt(), feat_MD @ state["prior_mean"]], 1)
            return self.readout(rating_M3, self.values, state, inputs["user_features"] if self.user_features else None)
        if self.objective.predicts == "distribution":
            return {"mean": mean_M[:, None], "std": (variance_M + exp_as(variance_M, self.log_noise)).sqrt()[:, None]}
        return mean_M[:, None]

    def _features(self, inputs: Tree) -> Tensor:
        features = the_tensor(self.function.query({}, {}, inputs), "holds the features")
        return F.pad(at_least_float32(features.flatten(1)), (0, 1), value=1.0)


CHOICE_SHRINKAGE = 2.0  # number of ratings by which the mean features of rated items are shrunk to 0
INITIAL_SLOPE = 1.3  # initial inverse variance of the distribution over levels around the predicted rating


class Readout(nn.Module):
    r"""Logits of the levels from a predicted rating and the user's past use of the levels.

    $$ \ell_k = c_k + (A h)_k + \gamma \hat y v_k + g_k(h, \tfrac13 \log(1 + n), \hat y, \hat\sigma, \hat y_0, z) $$

    with $h = u / (n + e^\rho)$ the user's shrunk shares of the levels from their counts $u$, $n$ the number of ratings,
    $\hat y \pm \hat\sigma$ the predicted rating, $\hat y_0$ its prior mean, and $z$ the user's features, if any. The
    perceptron $g$ and the matrix $A$ start at zero, so the initial distribution is a normal one around $\hat y$ of
    variance 1 / `INITIAL_SLOPE`, at the levels.
    """

    def __init__(self, values: Sequence[float], hidden: int, user_features: int) -> None:
        super().__init__()
        levels = len(values)
        self.slope, self.log_shrink = nn.Parameter(torch.tensor(INITIAL_SLOPE)), nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(-0.5 * INITIAL_SLOPE * torch.tensor(values).square())
        self.usage = nn.Linear(levels, levels, bias=False)
        inputs = levels + 4 + user_features
        self.correction = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, levels))
        for layer in (self.usage, self.correction[2]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, rating_M3: Tensor, values: Tensor, state: Tree, user_features: Tensor | None) -> Tensor:
        """Logits (M, L); `rating_M3` has mean and standard deviation of the predicted rating, and its prior mean."""
        share_L = state["usage"] / (state["rows"] + exp_as(rating_M3, self.log_shrink))
        user = torch.cat([share_L, state["rows"].log1p()[None] / 3])
        inputs = [user.expand(len(rating_M3), -1), rating_M3, *([] if user_features is None else [user_features])]
        correction = self.correction(in_type_of(self, torch.cat(inputs, 1))) + self.usage(in_type_of(self, share_L))
        return self.bias + self.slope * rating_M3[:, :1] * values + correction


@check_arguments
def alpaca(
    embedding: Embedding,
    *,
    features: FeatureCount,
    noise: PositiveFloat = 1.0,
    prior: PositiveFloat = 0.35,
    hidden: PositiveInt = 32,
    item_penalty: NonNegativeFloat = 8.0,
    user_features: UserFeatures = 0,
    objective: Objective = objectives.gaussian,
) -> Alpaca:
    r"""ALPaCA: Bayesian ridge regression of a user's ratings on item features; prior and features are meta-learned.

    $$ u \sim N\bigl(m + B \bar\phi, \mathrm{diag}(s^2)\bigr), \qquad y = u^\top \phi_\theta(x) + \epsilon, \qquad
       \hat y(x) = E[u \mid \text{support}]^\top \phi_\theta(x) $$

    $\bar\phi$ is the shrunk mean of the support's features, since the choice of items that a user rates is informative
    too. For `objectives.levels` a `Readout` turns the prediction into logits of the levels; for `objectives.gaussian`
    the prediction is a mean and a standard deviation; else the mean.

    Args:
        embedding: inputs (n, ...) to features (n, features); the prior mean of the first feature's weight starts at 1
            and of the others at 0, as suits features whose first is an item's mean (see `models.factorisation`).
        features: width of the embedding's output.
        noise: initial value of the variance $\sigma^2$ of $\epsilon$, in squares of the targets' unit.
        prior: initial value of each of the standard deviations $s$.
        hidden: width of the readout's hidden layer.
        item_penalty: factor of the embedding's `penalty` in the outer loss, if it has one, as `models.factorisation`
            does: it regularises parameters of single items, which are learned from few ratings.
        user_features: width of the input `user_features` of `kshot.sources.ratings`, which the readout reads too, since
            groups of users differ in their use of the scale; 0 if there is none.
        objective: `levels`, `gaussian`, or a regression of one number.

    Returns:
        A learner for any number of shots, including none. It solves as many equations as there are support rows or
        features, whichever is less.

    Example:
        >>> learner = alpaca(nn.Identity(), features=1)
        >>> state = learner.adapt(Batch.of(torch.ones(3, 1), torch.full((3, 1), 2.0)))
        >>> sorted(learner.predict(state, torch.ones(5, 1)))
        ['mean', 'std']

    References:
        Harrison, Sharma, Pavone: Meta-Learning Priors for Efficient Online Bayesian Regression (ALPaCA), WAFR 2018,
        arXiv:1807.08912; with the user's choice of items as in Koren: Factorization Meets the Neighborhood (SVD++), KDD
        2008.

    Deviations:
        The prior's covariance is diagonal, where the paper learns all of it, and the noise is one number; the choice of
        items and the levels are not in ALPaCA.
    """
    sizes = {"hidden": hidden, "user_features": user_features}
    return Alpaca(embedding, features, objective, noise=noise, prior=prior, item_penalty=item_penalty, **sizes)
