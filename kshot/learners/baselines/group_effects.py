r"""A pooled predictor plus effects of the group, shrunk by their variance between the training groups.

$$ \hat y(x) = f(x) + z(x)^\top \hat b(\text{support}) $$

With a linear $f$ this is partial pooling, with boosting for $f$ boosting plus shrunken residuals, and with a fixed
covariance of $b$ ridge regression of the group alone.

Shape legend: N support rows, M query rows, F inputs, p features of $f$, q features with an effect of the group,
D numbers of a target, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from kshot.learner import Learner
from kshot.learners.baselines.mixed_model import MixedModel, best_effects, best_logit_effects
from kshot.objectives import Objective
from kshot.types import Batch, Tree

FARTHEST = 10.0
"""Features are clipped to this many standard deviations from the mean of the training rows."""

Predictor = Callable[[Tensor], Tensor]
"""Inputs (n, F) to predictions (n, D), or logits (n, C), both float64."""


class Basis:
    """Features of rows, float64 with a first column of ones, and the fewer ones whose effects vary by group.

    Args:
        input_NF: the training inputs, which the features are standardised by.
        group_N: their groups.
        degree: 1, or 2 to add squares of the inputs that have more than two values.
        slopes: number of features besides the ones with an effect of the group: the first of `ranked`, or else, if
            there are more features, their principal components within groups.
        ranked: the places of features, without the ones, in the order of their importance.

    Example:
        >>> basis = Basis(torch.tensor([[0.0], [2.0], [4.0]]), np.array([0, 0, 1]), degree=2, slopes=1)
        >>> basis.fixed(torch.tensor([[2.0]])).shape, basis.random(torch.tensor([[2.0]])).shape
        (torch.Size([1, 3]), torch.Size([1, 2]))
    """

    def __init__(
        self,
        input_NF: Tensor,
        group_N: np.ndarray,
        *,
        degree: int = 1,
        slopes: int = 0,
        ranked: Sequence[int] | None = None,
    ) -> None:
        input_NF = input_NF.double()
        self.mean_F = input_NF.mean(0)
        deviation_F = input_NF.std(0, correction=0)
        constant = deviation_F <= 1e-6 * self.mean_F.abs().clamp_min(1e-6)
        self.std_F = torch.where(constant, torch.inf, deviation_F)  # a constant input becomes 0
        numeric = [len(column.unique()) > 2 for column in input_NF.T]
        self.squared = torch.tensor([i for i, many in enumerate(numeric) if many and degree > 1], dtype=torch.long)
        self.square_mean, self.square_std = torch.tensor(0.0), torch.tensor(1.0)
        if len(self.squared):
            squares = self._standard(input_NF)[:, self.squared].square()
            self.square_mean, self.square_std = squares.mean(0), squares.std(0, correction=0).clamp_min(1e-6)
        feature_Np = self.fixed(input_NF)[:, 1:]
        slopes = min(slopes, feature_Np.shape[1])
        self.rotation = torch.eye(feature_Np.shape[1]).double()[:, :slopes]
        if ranked is not None:
            self.rotation = torch.eye(feature_Np.shape[1]).double()[:, list(ranked)[:slopes]]
        elif 0 < slopes < feature_Np.shape[1]:
            group = torch.from_numpy(group_N)
            sums = torch.zeros(int(group[-1]) + 1, feature_Np.shape[1]).double().index_add(0, group, feature_Np)
            within_Np = feature_Np - (sums / group.bincount()[:, None])[group]
            self.rotation = torch.linalg.eigh(within_Np.mT @ within_Np)[1][:, -slopes:]

    def fixed(self, inputs: Tensor) -> Tensor:
        """The features (n, p) of inputs (n, F)."""
        standard = self._standard(inputs.double())
        squares = (standard[:, self.squared].square() - self.square_mean) / self.square_std
        return torch.cat([torch.ones(len(inputs), 1).double(), standard, squares], 1)

    def random(self, inputs: Tensor) -> Tensor:
        """The features (n, q) with an effect of the group."""
        fixed = self.fixed(inputs)
        return torch.cat([fixed[:, :1], fixed[:, 1:] @ self.rotation], 1)

    def _standard(self, inputs: Tensor) -> Tensor:
        return ((inputs - self.mean_F) / self.std_F).clamp(-FARTHEST, FARTHEST)


class GroupEffects(Learner):
    r"""A pooled predictor plus effects of the group, which shrink to 0 without support rows.

    For numbers the effects are the best linear unbiased prediction from the residuals of the support, and for
    `objectives.gaussian` the standard deviation is $\sigma \sqrt{1 + z^\top H H^\top z}$. For classes they are the
    mode of the posterior of a logistic model whose offset is the pooled one.

    The state is `{"effects": (q, D or C)}`, for numbers with the factor `"half": (D, q, q)` of the posterior
    covariance. All is computed in float64 on the CPU.

    Args:
        objective: regression of numbers, `gaussian`, or `shared_classification`.
        pooled: $f$, added as it is.
        basis: $z$.
        models: of each of the D numbers of a target, or one for all classes; the factor and noise are used.
        shape: of one target, () axes beyond the first.
    """

    def __init__(
        self,
        objective: Objective,
        pooled: Predictor,
        basis: Basis,
        models: Sequence[MixedModel],
        shape: Sequence[int],
    ) -> None:
        super().__init__(objective)
        self.pooled, self.basis, self.models, self.shape = pooled, basis, tuple(models), tuple(shape)

    def _adapt(self, support: Batch) -> Tree:
        inputs, weight_N = support.inputs.detach().cpu().double(), support.weight.detach().cpu().double()
        # Rows of weight 0 may hold anything, and boosting costs as much for them as for others.
        real = weight_N > 0
        inputs, weight_N = inputs[real], weight_N[real]
        target_ND = support.targets.detach().cpu().double()[real].flatten(1)
        random_Nq, pooled_ND = self.basis.random(inputs), self._pooled(inputs)
        if self.objective.classifies:
            factor_qq = self.models[0].factor
            mode_GqC, _ = best_logit_effects(
                random_Nq[None], target_ND[None], weight_N[None], pooled_ND[None], factor_qq
            )
            return {"effects": factor_qq @ mode_GqC[0]}
        residual_ND = target_ND - pooled_ND
        found = [best_effects(random_Nq, r, weight_N, m) for r, m in zip(residual_ND.T, self.models)]
        return {"effects": torch.stack([e for e, _ in found], 1), "half": torch.stack([half for _, half in found])}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        given, inputs = inputs, inputs.detach().cpu().double()
        random_Mq = self.basis.random(inputs)
        mean_MD = self._pooled(inputs) + random_Mq @ state["effects"].cpu()
        shape = len(inputs), *self.shape
        mean = mean_MD.reshape(shape).to(given)
        if self.objective.predicts != "distribution":
            return mean
        noise_D = torch.stack([model.noise for model in self.models])
        spread_DM = (random_Mq @ state["half"].cpu()).square().sum(2)
        std_MD = (noise_D * (1 + spread_DM.mT)).clamp_min(MIN_VARIANCE).sqrt()
        return {"mean": mean, "std": std_MD.reshape(shape).to(given)}

    def _pooled(self, inputs: Tensor) -> Tensor:
        return self.pooled(inputs) if len(inputs) else torch.zeros(0, prod(self.shape)).double()


MIN_VARIANCE = 1e-6
"""Of predictions for standardised targets, if the training targets are exact."""
