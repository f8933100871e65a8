"""Bayesian ridge regression with a learned prior: what a new user's few ratings make of a vector of tastes.

Shape legend: N support rows, M query rows, D features with the one that is always 1, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import NonNegativeFloat, PositiveFloat, PositiveInt
from kshot.inner.functional import Function
from kshot.learner import Learner
from kshot.objectives import Objective, levels_of, weighted_mean
from kshot.types import Batch, Task, Tree


class FoldIn(Learner):
    """See `alpaca`.

    The state is `{"mean": (D,), "covariance": (D, D), "usage": (L,), "rows": ()}`: the tastes, how sure they are, and
    for levels how often each was given, of how many ratings.
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
        values = levels_of(objective)
        size = features + 1
        self.item_penalty, self.user_features = item_penalty, user_features
        self.embedding, self.function = embedding, Function(embedding, "running")
        self.prior_mean = nn.Parameter(F.one_hot(torch.tensor(0), size).float())
        self.from_choice = nn.Parameter(torch.zeros(size, size))
        self.log_prior = nn.Parameter(torch.full((size,), float(prior)).log())
        self.log_noise = nn.Parameter(torch.tensor(float(noise)).log())
        self.register_buffer("values", torch.tensor(values or (0.0,)))
        self.readout = Readout(values, hidden, user_features) if values else None

    def forward(self, task: Task) -> Tensor:
        """The query loss after adapting, and what the embedding's `penalty` makes of the query's items."""
        loss = super().forward(task)
        penalty = getattr(self.embedding, "penalty", None)
        if penalty is None or not self.item_penalty:
            return loss
        return loss + self.item_penalty * weighted_mean(penalty(task.query.inputs["item"]), task.query.weight)

    def _adapt(self, support: Batch) -> Tree:
        feat_ND, weight_N = self._features(support.inputs), support.weight
        if support.targets.shape[1] != len(self.values):
            wanted = f"{len(self.values)} levels" if self.readout else "one number"
            raise ValueError(f"this learner predicts {wanted} a row, got targets {tuple(support.targets.shape)}")
        rating_N = support.targets @ self.values if self.readout else support.targets[:, 0]
        rows = weight_N.sum()
        chosen_D = weight_N @ feat_ND / (rows + SOME)
        before_D = self.prior_mean + chosen_D @ self.from_choice
        mean, covariance = posterior(
            feat_ND, rating_N - feat_ND @ before_D, weight_N, self.log_prior.exp(), self.log_noise.exp()
        )
        state = {"mean": before_D + mean, "before": before_D, "covariance": covariance, "rows": rows}
        return state | ({"usage": weight_N @ support.targets} if self.readout else {})

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        feat_MD = self._features(inputs)
        mean_M = feat_MD @ state["mean"]
        variance_M = ((feat_MD @ state["covariance"]) * feat_MD).sum(1).clamp_min(1e-8)
        if self.readout:
            of_item_M3 = torch.stack([mean_M, variance_M.sqrt(), feat_MD @ state["before"]], 1)
            return self.readout(of_item_M3, self.values, state, inputs["user_features"] if self.user_features else None)
        if self.objective.predicts == "distribution":
            return {"mean": mean_M[:, None], "std": (variance_M + self.log_noise.exp()).sqrt()[:, None]}
        return mean_M[:, None]

    def _features(self, inputs: Tree) -> Tensor:
        return F.pad(self.function.query({}, {}, inputs).flatten(1), (0, 1), value=1.0)


SOME = 2.0  # ratings that a choice of items must outweigh before it tells much
SHARP = 1.3  # how the chances of levels fall off around what is predicted, where the readout starts


class Readout(nn.Module):
    r"""From a predicted rating to the chances of its levels, by how a user was seen to use the scale.

    $$ \ell_k = c_k + (A h)_k + \gamma \hat y v_k + g_k(h, \log n, \hat y, \hat\sigma, \hat y_0, z) $$

    with $h$ the user's shrunk shares of the levels, $n$ their ratings, $\hat y \pm \hat\sigma$ what is predicted and
    $\hat y_0$ what was before any rating, and $z$ the features of the user, if there are any; $g$ is a perceptron that
    starts at zero, and $A$ does. So the start is a normal distribution around $\hat y$, of variance 1 / `SHARP`, at the
    levels.
    """

    def __init__(self, values: Sequence[float], hidden: int, user_features: int) -> None:
        super().__init__()
        levels = len(values)
        self.slope, self.log_shrink = nn.Parameter(torch.tensor(SHARP)), nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(-0.5 * SHARP * torch.tensor(values).square())
        self.usage = nn.Linear(levels, levels, bias=False)
        told = levels + 4 + user_features
        self.more = nn.Sequential(nn.Linear(told, hidden), nn.GELU(), nn.Linear(hidden, levels))
        for layer in (self.usage, self.more[2]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, of_item_M3: Tensor, values: Tensor, state: Tree, user_features: Tensor | None) -> Tensor:
        share_L = state["usage"] / (state["rows"] + self.log_shrink.exp())
        of_user = torch.cat([share_L, state["rows"].log1p()[None] / 3])
        told = [of_user.expand(len(of_item_M3), -1), of_item_M3, *([] if user_features is None else [user_features])]
        return self.bias + self.usage(share_L) + self.slope * of_item_M3[:, :1] * values + self.more(torch.cat(told, 1))


def posterior(
    feat_ND: Tensor, target_N: Tensor, weight_N: Tensor, prior_D: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The posterior of weights $u \sim N(0, \Lambda)$, $\Lambda = \mathrm{diag}(s^2)$, given $y = F u + \epsilon$:

    $$ \Sigma = (\Lambda^{-1} + F^\top W F / \sigma^2)^{-1}, \qquad \mu = \Sigma F^\top W y / \sigma^2 $$

    Solved in N equations by Woodbury's identity where there are fewer rows than features.

    Args:
        feat_ND: $F$.
        target_N: $y$.
        weight_N: of the rows, the diagonal of $W$.
        prior_D: standard deviations $s$.
        noise: the variance $\sigma^2$, ().

    Returns:
        $\mu$ (D,) and $\Sigma$ (D, D).
    """
    root_N = weight_N.sqrt()
    scaled_ND, target_N = root_N[:, None] * feat_ND * prior_D, root_N * target_N
    rows, size = scaled_ND.shape
    one = torch.eye(min(rows, size), dtype=feat_ND.dtype, device=feat_ND.device)
    if rows < size:
        solved = torch.linalg.solve(scaled_ND @ scaled_ND.mT + noise * one, scaled_ND)
        inner_DD = torch.eye(size, dtype=one.dtype, device=one.device) - scaled_ND.mT @ solved
        mean_D = target_N @ solved
    else:
        inverse_DD = torch.linalg.inv(scaled_ND.mT @ scaled_ND + noise * one)
        inner_DD, mean_D = noise * inverse_DD, inverse_DD @ (scaled_ND.mT @ target_N)
    return prior_D * mean_D, (prior_D[:, None] * inner_DD * prior_D).contiguous()


def alpaca(
    embedding: nn.Module,
    *,
    features: int,
    noise: PositiveFloat = 1.0,
    prior: PositiveFloat = 0.35,
    hidden: PositiveInt = 32,
    item_penalty: NonNegativeFloat = 8.0,
    user_features: int = 0,
    objective: Objective = objectives.gaussian,
) -> FoldIn:
    r"""Fold a new user into a factorisation: Bayesian ridge on item features, prior and features meta-learned.

    $$ u \sim N\bigl(m + B \bar\phi, \mathrm{diag}(s^2)\bigr), \qquad y = u^\top \phi_\theta(x) + \epsilon, \qquad
       \hat y(x) = E[u \mid \text{support}]^\top \phi_\theta(x) $$

    $\bar\phi$ is the mean of the support's features, so that what a user chose to rate tells something too. For
    `objectives.levels` a `Readout` makes chances of levels of it; for `objectives.gaussian` it is a mean and a standard
    deviation; else the mean.

    Args:
        embedding: inputs (n, ...) to features (n, features); the weight of the first starts at 1, of the others at 0,
            as suits a feature that is an item's own mean, such as that of `models.factorisation`.
        features: how many.
        noise: where $\sigma^2$ starts, in squares of the targets' unit.
        prior: where each of $s$ starts.
        hidden: width of the readout.
        item_penalty: what the outer loss adds of the embedding's `penalty`, if it has one, as `models.factorisation`
            does: it holds back what is an item's own, of which few ratings tell little.
        user_features: how many numbers the input `user_features` of `kshot.sources.ratings` has: the readout is
            told them too, since people of other years use another part of the scale.
        objective: `levels`, `gaussian`, or a regression of one number.

    Returns:
        A learner for any number of shots, none included. It solves as many equations as there are support rows or
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
        The prior's covariance is diagonal, and the noise is one number; the choice of items and the levels are not in
        ALPaCA.
    """
    if not (noise > 0 and prior > 0):
        raise ValueError(f"noise and prior must be above 0, got {noise} and {prior}")
    return FoldIn(
        embedding,
        features,
        objective,
        noise=noise,
        prior=prior,
        hidden=hidden,
        item_penalty=item_penalty,
        user_features=user_features,
    )
