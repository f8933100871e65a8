"""Partial pooling: what groups share, and how each deviates from it, shrunk by what training groups have shown.

Shape legend: N support rows, M query rows, G training groups, F inputs, P features of the mean, D features of a group's
deviation, K outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import Function
from kshot.inner.precision import at_least_float32, widest_float
from kshot.learner import evaluation_mode
from kshot.learners.pooling.basis import Basis
from kshot.learners.pooling.boosting import Boosting
from kshot.learners.pooling.empirical_bayes import (
    NORMAL,
    Penalties,
    Training,
    fit_classes,
    fit_numbers,
    without_deviations,
)
from kshot.learners.pooling.fitted import FittedToTraining
from kshot.learners.pooling.posterior import logistic_posterior, posterior
from kshot.learners.pooling.principal_components import COMPONENTS, TABLE, PrincipalComponents
from kshot.objectives import Objective
from kshot.objectives.outputs import the_tensor
from kshot.supplied import Embedding, FeatureCount, NumOutputs
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Tree, to

MOST_GROUPS, MOST_ROWS = 1000, 50_000
"""Of the training split, that are read to fit."""


class PartialPooling(FittedToTraining):
    """Bayesian partial pooling; see `partial_pooling`, which documents the arguments.

    The state is `{"mean": (K, D), "covariance": (K, D, D), "noise": (K,)}`: posterior mean and covariance of the task's
    weights, and, for numbers, the variance of the task's noise.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        objective: Objective,
        *,
        embedding: nn.Module | None,
        boosting: Boosting | None = None,
        knots: int,
        penalties: Penalties,
        prior: float,
        noise: float,
        steps: int,
    ) -> None:
        super().__init__(objective)
        if objective.task_specific_classes or objective.predicts not in ("values", "distribution", "classes", "labels"):
            raise ValueError(
                "partial pooling predicts numbers, or classes that all tasks share; for task-specific classes use a "
                "learner that compares examples, such as protonet or plda"
            )
        self.inputs, self.penalties, self.steps = inputs, penalties, steps
        self.logistic = objective.predicts in ("classes", "labels")
        self.mirrored = objective.predicts == "classes" and outputs == 2  # the logit of the first class is the negative
        self.columns, outputs = outputs, 1 if self.mirrored else outputs
        self.embedding, self.boosting = embedding, boosting
        self.function = None if embedding is None else Function(embedding, "running")
        self.free = 0 if boosting is None else outputs
        self.components = PrincipalComponents(inputs) if inputs > TABLE else None
        columns, knots = (inputs, knots) if self.components is None else (COMPONENTS, 0)
        self.basis = Basis(columns + self.free, outputs, knots=knots)
        size, (P, D) = (outputs,), (self.basis.mean_size, self.basis.slope_size)
        # Estimates in closed form are buffers; parameters are steps from them, in units of their uncertainty.
        self.register_buffer("coefficients", torch.zeros(outputs, P))
        self.register_buffer("coefficient_unit", torch.ones(outputs, P))
        self.register_buffer("scale", torch.full((outputs, D), float(prior)))
        self.register_buffer("mixing", torch.eye(D).expand(outputs, D, D).clone())
        self.register_buffer("mixing_unit", torch.ones(()))
        self.register_buffer("fitted", torch.zeros(()))
        self.coefficient_step = nn.Parameter(torch.zeros(outputs, P))
        self.log_scale_step = nn.Parameter(torch.zeros(outputs, D))
        self.mixing_step = nn.Parameter(torch.zeros(outputs, D, D))
        self.log_noise = nn.Parameter(torch.full(size, float(noise)).log(), requires_grad=not self.logistic)
        self.log_freedom = nn.Parameter(
            torch.full(size, NORMAL).log(), requires_grad=objective.predicts == "distribution"
        )

    coefficients: Tensor
    coefficient_unit: Tensor
    scale: Tensor
    mixing: Tensor
    mixing_unit: Tensor
    fitted: Tensor

    def fit_to_training(self, source: TaskSource) -> None:
        """Estimate all parameters but the embedding's from the training groups of a source, in closed form."""
        device = self.coefficients.device
        groups = source.training_groups(MOST_GROUPS)
        with evaluation_mode(self):
            rows = [to(batch.rows(slice(max(1, MOST_ROWS // len(groups)))), device) for batch in groups]
            data = Training(
                torch.cat([self._inputs(batch.inputs) for batch in rows]).double().cpu(),
                torch.cat([self._targets(batch) for batch in rows]).double().cpu(),
                torch.repeat_interleave(torch.tensor([len(batch.weight) for batch in rows])),
            )
            data = data.only(torch.cat([batch.weight for batch in rows]).cpu() > 0)
            if len(data.group_N.unique()) < 2:
                raise ValueError("partial pooling is fitted to the differences of groups: it needs two training groups")
            if self.components is not None:
                self.components.measure(data.x_NF)
                data = data._replace(x_NF=self.components(data.x_NF))
            if self.boosting is not None:
                data = data._replace(x_NF=torch.cat([data.x_NF, self._fit_boosting(data)], 1))
            double = self._measured(data)
            fits = (fit_classes if self.logistic else fit_numbers)(data, double, self.penalties, self.free)
            self.basis.load_state_dict(double.state_dict())
            norm_KD = fits.root.square().sum(-1).sqrt()
            self.coefficients.copy_(fits.coefficients)
            self.coefficient_unit.copy_(fits.uncertainty)
            self.scale.copy_(norm_KD)
            self.mixing.copy_(fits.root / norm_KD.clamp_min(1e-12)[..., None])
            self.log_noise.copy_(fits.log_noise)
            self.log_freedom.copy_(fits.log_freedom)
            self.mixing_unit.fill_(0.1)
            for step in (self.coefficient_step, self.log_scale_step, self.mixing_step):
                step.zero_()
            self.fitted.fill_(1.0)

    def _measured(self, data: Training) -> Basis:
        basis = Basis(data.x_NF.shape[1], len(self.coefficients), knots=self.basis.knots).double()
        basis.measure(data.x_NF, data.group_N)
        if self.components is not None:
            basis.scale[:COMPONENTS] = 1  # components keep their spread
        return basis

    def _fit_boosting(self, data: Training) -> Tensor:
        """Fit the trees to what is left without the groups' deviations, and return predictions (N, K) for other groups.

        Labels are boosted as they are, since their deviations are in the logits.
        """
        assert self.boosting is not None
        target_NK = data.target_NK
        if not self.logistic:
            target_NK = without_deviations(data, self._measured(data), self.penalties)
        return self.boosting.fit(data.x_NF, target_NK, data.group_N, logistic=self.logistic)

    def _adapt(self, support: Batch) -> Tree:
        mean_KN, slope_KND = self._shared(support.inputs)
        wide, root_KDD = mean_KN.dtype, self._root(mean_KN.dtype)
        target_KN, weight_N = self._targets(support).mT.to(wide), support.weight.to(wide)
        weight_KN, state = weight_N.expand_as(target_KN), {}
        if self.logistic:
            mean, covariance = logistic_posterior(slope_KND, target_KN, mean_KN, weight_KN, root_KDD, steps=self.steps)
        else:
            noise_K = self.log_noise.to(wide).exp()
            residual_KN = target_KN - mean_KN
            mean, covariance = posterior(slope_KND, residual_KN, weight_KN, root_KDD, noise_K)
            left_KN = residual_KN - (slope_KND @ mean[..., None])[..., 0]
            square_K = (weight_KN * residual_KN * left_KN).sum(-1) / noise_K
            factor = self._variance_factor(square_K, weight_N.sum())
            covariance, state["noise"] = factor[:, None, None] * covariance, factor * noise_K
        state |= {"mean": mean, "covariance": covariance}
        dtype = torch.promote_types(self.coefficients.dtype, torch.float32)
        return {name: leaf.to(dtype) for name, leaf in state.items()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        mean_KM, variance_KM = self.distribution(state, inputs)
        if not self.logistic:
            if self.objective.predicts == "values":
                return mean_KM.mT
            return {"mean": mean_KM.mT, "std": variance_KM.sqrt().mT}
        logit_MK = (mean_KM / (1 + math.pi / 8 * variance_KM).sqrt()).mT
        if self.objective.predicts == "labels":
            return logit_MK
        if self.mirrored:
            logit_MK = torch.cat([-logit_MK, logit_MK], 1)
        return torch.nn.functional.logsigmoid(logit_MK)

    def distribution(self, state: Tree, inputs: Tree) -> tuple[Tensor, Tensor]:
        """Mean and variance (K, M) of the targets of queries under a state; for classes, of their logits."""
        mean_KM, slope_KMD = self._shared(inputs)
        dtype, wide = state["mean"].dtype, mean_KM.dtype
        mean_KM = mean_KM + (slope_KMD @ state["mean"].to(wide)[..., None])[..., 0]
        variance_KM = ((slope_KMD @ state["covariance"].to(wide)) * slope_KMD).sum(-1).clamp_min(1e-12)
        if not self.logistic:
            variance_KM = variance_KM + state["noise"].to(wide)[:, None]
        return mean_KM.to(dtype), variance_KM.to(dtype)

    def _shared(self, inputs: Tree) -> tuple[Tensor, Tensor]:
        """What groups share (K, n), and the features of their deviations (K, n, D), in the widest type."""
        x_nF = self._inputs(inputs)
        if self.components is not None:
            x_nF = self.components(x_nF)
        if self.boosting is not None:
            x_nF = torch.cat([x_nF, self.boosting(x_nF)], 1)
        wide = widest_float(x_nF.device)
        u_nF = self.basis.standardised(x_nF.to(wide)).to(wide)
        mean_nP = self.basis.mean(u_nF)
        coefficients_KP = (self.coefficients + self.coefficient_unit * self.coefficient_step).to(wide)
        return coefficients_KP @ mean_nP.mT, self.basis.slope(u_nF, mean_nP)

    def _root(self, dtype: torch.dtype) -> Tensor:
        """The Cholesky root (K, D, D) of the prior covariance."""
        mixing_KDD = self.mixing + self.mixing_unit * self.mixing_step.tril(-1)
        return ((self.scale * self.log_scale_step.exp())[..., None] * mixing_KDD).to(dtype)

    def _variance_factor(self, square_K: Tensor, rows: Tensor) -> Tensor:
        r"""The factor of a task's variances, $(\nu + q) / (\nu + n - 2)$: the mean of its inverse gamma posterior."""
        freedom_K = 2 + (self.log_freedom.to(square_K.dtype).exp() - 2).clamp_min(0.1)
        return (freedom_K + square_K) / (freedom_K + rows - 2)

    def _inputs(self, inputs: Tree) -> Tensor:
        """Inputs, or the embedding's features of them, as rows (n, F)."""
        if self.function is not None:
            inputs = the_tensor(self.function.query({}, {}, inputs), "holds the features")
        elif isinstance(inputs, dict):
            raise ValueError(f"inputs of several parts ({', '.join(inputs)}) need an embedding that makes rows of them")
        x_nF = at_least_float32(inputs.flatten(1))
        if x_nF.shape[1] != self.inputs:
            raise ValueError(f"this learner takes {self.inputs} inputs a row, got {tuple(x_nF.shape)}")
        return x_nF

    def _targets(self, batch: Batch) -> Tensor:
        """Targets (n, K): of two classes those of the second."""
        if batch.targets.shape[1:] != (self.columns,):
            raise ValueError(f"targets must be (n, {self.columns}), got {tuple(batch.targets.shape)}")
        return batch.targets[:, 1:] if self.mirrored else batch.targets


@check_arguments
def partial_pooling(
    inputs: FeatureCount,
    outputs: NumOutputs,
    *,
    knots: NonNegativeInt = 5,
    slope_penalty: NonNegativeFloat = 10.0,
    correlation_penalty: NonNegativeFloat = 5.0,
    prior: PositiveFloat = 0.5,
    noise: PositiveFloat = 0.5,
    steps: PositiveInt = 12,
    objective: Objective = objectives.gaussian,
    embedding: Embedding | None = None,
) -> PartialPooling:
    r"""Bayesian partial pooling: random intercepts and slopes around what groups share, by empirical Bayes.

    $$ y = \beta^\top z(x) + u^\top \phi(x) + \epsilon, \qquad u \sim N(0, s \Sigma), \quad
       \epsilon \sim N(0, s \sigma^2), \quad 1 / s \sim \mathrm{Gamma}(\nu / 2, \nu / 2) $$

    $z$ are inputs and piecewise linear functions of them, $\phi$ the same and the prediction that groups share, so
    that a group deviates in its level, its slopes, its curves, and in how strongly it follows the others (see
    `Basis`). Adapting is the posterior of $u$ in closed form; $s$, by which groups differ in their scale, widens or
    narrows the predictive distribution. Classes have a logit each, $P(y_k = 1) = \mathrm{sigmoid}(\beta_k^\top z +
    u_k^\top \phi)$, with the normal approximation at the posterior's mode; the probabilities are scaled to sum to 1,
    which changes nothing for two.

    More than 256 inputs, such as pixels or an encoder's features, are replaced by their first 64 principal components,
    and $h$ is left out.

    $\beta$, the full covariance $\Sigma$, $\sigma^2$ and $\nu$ are estimated from the training groups by
    `training.fit_closed_form(learner, source)`, which `training.fit` calls first: restricted maximum likelihood with
    priors under which the variance of slopes that do not differ between groups vanishes, so that a few dozen groups
    suffice. Meta-training then takes steps from the estimates, in units of their uncertainty.

    Args:
        inputs: size of an input, flattened; with an embedding, of its output.
        outputs: size of a target, or number of classes. Each has parameters of its own.
        knots: number of knots of the piecewise linear function of each input with many values; 0 for linear features.
            With more than 24 inputs groups deviate in linear features only.
        slope_penalty: rate of the exponential prior of the standard deviations of slopes, in units of the
            targets' standard deviation; 0 for none.
        correlation_penalty: precision of the normal prior that pulls correlations of $\Sigma$ to 0; 0 for none.
        prior, noise: standard deviations of $u$ and $\sigma^2$ before they are estimated.
        steps: number of steps to the posterior's mode, for classes.
        objective: `gaussian`, with predictions `{"mean": (m, K), "std": (m, K)}`; a regression;
            `shared_classification` or `multilabel`, with logits (m, K). The method `distribution` gives mean and
            variance for each of them.
        embedding: any module that maps inputs to rows (n, inputs), such as a pretrained one; it is trained too.

    Returns:
        A learner for any number of shots. It solves as many equations as there are support rows or features,
        whichever is less.

    Raises:
        ValueError: an objective of task-specific classes; fewer than two training groups.

    Example:
        >>> learner = partial_pooling(1, 1, knots=0)
        >>> kshot.training.fit_closed_form(learner, kshot.sources.sinusoids())
        True
        >>> state = learner.adapt(Batch.of(torch.zeros(3, 1), torch.full((3, 1), 2.0)))
        >>> prediction = learner.predict(state, torch.zeros(1, 1))
        >>> bool((prediction["mean"] - 2).abs() < prediction["std"])
        True

    References:
        Gelman, Hill: Data Analysis Using Regression and Multilevel/Hierarchical Models, 2007; Laird, Ware:
        Random-Effects Models for Longitudinal Data, Biometrics 38, 1982. As meta-learning: Harrison, Sharma, Pavone,
        arXiv:1807.08912.

    Deviations:
        `alpaca` learns a diagonal prior by gradient steps, and has an intercept for the choice of rated items. The
        priors of the variances, and $m(x)$ as a feature of deviations, are new.
    """
    return PartialPooling(
        inputs, outputs, objective, embedding=embedding, knots=knots, prior=prior, noise=noise, steps=steps,
        penalties=Penalties(slope_penalty, correlation_penalty),
    )  # fmt: skip
