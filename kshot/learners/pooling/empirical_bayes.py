"""Estimates of partial pooling from training groups: numbers by REML, classes by REML of their linearised logits.

Shape legend: N rows, F inputs, P features of the mean, D features of a group's deviation, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.learners.pooling.basis import Basis
from kshot.learners.pooling.posterior import posterior
from kshot.learners.pooling.variance_components import (
    STEPS,
    Components,
    GroupedRows,
    Search,
    fit_components,
)

NUM_LINEARISATIONS = 5
STEPS_A_LINEARISATION = 25
NUM_RESCALINGS = 3
HARDLY_DIFFERENT = 48.0
"""Degrees of freedom from which groups hardly differ in their scale."""


class Training(NamedTuple):
    """Rows of training groups, float64: inputs, targets, and the number of each row's group."""

    x_NF: Tensor
    target_NK: Tensor
    group_N: Tensor

    def only(self, mask_N: Tensor) -> Training:
        """The rows of a mask, with groups numbered anew."""
        x_NF, target_NK, group_N = (leaf[mask_N] for leaf in self)
        return Training(x_NF, target_NK, group_N.unique(return_inverse=True)[1])


class Penalties(NamedTuple):
    """Those of `fit_components`."""

    slope: float
    correlation: float


class Fits(NamedTuple):
    """Estimates of all outputs.

    Coefficients and their uncertainty (K, P), roots (K, D, D), logarithms of noise and degrees of freedom (K,).
    """

    coefficients: Tensor
    uncertainty: Tensor
    root: Tensor
    log_noise: Tensor
    log_freedom: Tensor


def fit_numbers(data: Training, basis: Basis, penalties: Penalties, free: int) -> Fits:
    """Estimates for numbers; sets what groups follow in the basis.

    Where groups differ in their scale, the fit is repeated with each divided by the estimate of its own (expectation
    maximisation of a Student distribution), so that a few wild groups do not decide how much all others may deviate.
    """
    problem, found = Problem(data, basis, free), []
    for output, target_N in enumerate(data.target_NK.mT):
        weight_N = torch.ones_like(target_N)
        fit = problem.fit(output, target_N, weight_N, penalties)
        if problem.follow(output, fit.coefficients_P):
            fit = problem.fit(output, target_N, weight_N, penalties, start=fit.search.with_feature(1))
        scales = problem.scales(output, target_N, weight_N, fit)
        for _ in range(NUM_RESCALINGS):
            if scales.freedom >= HARDLY_DIFFERENT:
                break
            precision_N = scales.precision_G[data.group_N]
            fit = problem.fit(output, target_N, weight_N, penalties, start=fit.search, precision_N=precision_N)
            scales = problem.scales(output, target_N, weight_N, fit)
        log_scales = fit.noise.log() + math.log(scales.factor), torch.tensor(scales.freedom, dtype=torch.float64).log()
        coefficients_P, uncertainty_P, root_DD = problem.spread(output, fit)
        found.append((coefficients_P, uncertainty_P, math.sqrt(scales.factor) * root_DD, *log_scales))
    return Fits(*(torch.stack(each) for each in zip(*found)))


def fit_classes(data: Training, basis: Basis, penalties: Penalties, free: int) -> Fits:
    r"""Estimates for classes, each against the others; sets what groups follow in the basis.

    The logits are linearised around the predictions of the last fit, $z = \eta + (y - p) / (p (1 - p))$ with weights
    $p (1 - p)$ (penalised quasi-likelihood), and fitted as numbers with noise of variance 1.

    References:
        Breslow, Clayton: Approximate Inference in Generalized Linear Mixed Models, JASA 88, 1993.
    """
    problem, found = Problem(data, basis, free), []
    for output, label_N in enumerate(data.target_NK.mT):
        share = (label_N.sum() + 0.5) / (len(label_N) + 1)
        logit_N, fit = torch.full_like(label_N, float(share.logit())), None
        for step in range(NUM_LINEARISATIONS):
            probability_N = logit_N.sigmoid().clamp(0.01, 0.99)
            weight_N = probability_N * (1 - probability_N)
            target_N = logit_N.clamp(-4.6, 4.6) + (label_N - probability_N) / weight_N
            start = None if fit is None else fit.search
            if fit is not None and step == 2 and problem.follow(output, fit.coefficients_P):
                start = fit.search.with_feature(1)
            fit = problem.fit(output, target_N, weight_N, penalties, 1.0, STEPS_A_LINEARISATION, start)
            logit_N = problem.predict(output, target_N, weight_N, fit)
        assert fit is not None  # NUM_LINEARISATIONS > 0
        found.append((*problem.spread(output, fit), torch.zeros(()), torch.tensor(NORMAL).log()))
    return Fits(*(torch.stack(each) for each in zip(*found)))


def without_deviations(data: Training, basis: Basis, penalties: Penalties, mean: bool = False) -> Tensor:
    """Targets (N, K) without the estimated deviation of their group."""
    problem, columns = Problem(data, basis, 0), []
    for output, target_N in enumerate(data.target_NK.mT):
        weight_N = torch.ones_like(target_N)
        fit = problem.fit(output, target_N, weight_N, penalties)
        fitted_N = problem.predict(output, target_N, weight_N, fit)
        columns.append(target_N - fitted_N + (0 if mean else problem.mean_NP @ fit.coefficients_P))
    return torch.stack(columns, 1)


class Scales(NamedTuple):
    """The results of `student_scales`, and the inverse (G,) of each group's factor of variances."""

    freedom: float
    factor: float
    precision_G: Tensor


class Problem:
    """The rows of a fit, with those features only that are not 0 in all of them."""

    def __init__(self, data: Training, basis: Basis, free: int) -> None:
        self.group_N, self.basis = data.group_N, basis
        self.u_NF = basis.standardised(data.x_NF)
        self.all_NP = basis.mean(self.u_NF)
        self.in_mean_P = self.all_NP.abs().amax(0) > 0
        self.mean_NP = self.all_NP[:, self.in_mean_P]
        blocks = basis.blocks(free)[self.in_mean_P]
        self.block_P = blocks.unique(return_inverse=True)[1]

    def slope(self, output: int) -> tuple[Tensor, Tensor]:
        """Features of the deviations that are not 0, and their mask (D,)."""
        slope_ND = self.basis.slope(self.u_NF, self.all_NP)[output]
        in_slope_D = slope_ND.abs().amax(0) > 0
        return slope_ND[:, in_slope_D], in_slope_D

    def fit(
        self,
        output: int,
        target_N: Tensor,
        weight_N: Tensor,
        penalties: Penalties,
        noise: float | None = None,
        steps: int = STEPS,
        start: Search | None = None,
        precision_N: Tensor | None = None,
    ) -> Components:
        """The variance components of an output; `precision_N` divides all variances of a row's group."""
        mean_NP = self.mean_NP
        if precision_N is not None:
            mean_NP, target_N = precision_N.sqrt()[:, None] * mean_NP, precision_N.sqrt() * target_N
        rows = GroupedRows(mean_NP, self.slope(output)[0], target_N, weight_N, self.group_N, self.block_P)
        return fit_components(
            rows,
            slope_penalty=penalties.slope,
            correlation_penalty=penalties.correlation,
            noise=noise,
            steps=steps,
            start=start,
        )

    def follow(self, output: int, coefficients_P: Tensor) -> bool:
        """Let groups deviate in how strongly they follow a prediction, unless it is the same for all rows."""
        prediction_N = self.mean_NP @ coefficients_P
        scale = prediction_N.std(correction=0)
        if scale < 1e-6:
            return False
        row_P = torch.zeros_like(self.all_NP[0])
        row_P[self.in_mean_P] = coefficients_P / scale
        row_P[0] -= prediction_N.mean() / scale
        self.basis.follow[output] = row_P
        return True

    def predict(self, output: int, target_N: Tensor, weight_N: Tensor, fit: Components) -> Tensor:
        """The fitted values (N,), with the deviations of the groups."""
        slope_ND, _ = self.slope(output)
        fitted_N = self.mean_NP @ fit.coefficients_P
        for rows in self._rows_of_groups():
            residual_n = target_N[rows] - fitted_N[rows]
            mean_D, _ = posterior(slope_ND[rows], residual_n, weight_N[rows], fit.root_DD, fit.noise)
            fitted_N[rows] = fitted_N[rows] + slope_ND[rows] @ mean_D
        return fitted_N

    def spread(self, output: int, fit: Components) -> tuple[Tensor, Tensor, Tensor]:
        """Estimates with 0 at the features that are 0 in all rows: coefficients, their uncertainty, root."""
        _, in_slope_D = self.slope(output)
        coefficients_P, uncertainty_P = torch.zeros(2, len(self.in_mean_P), dtype=torch.float64)
        coefficients_P[self.in_mean_P], uncertainty_P[self.in_mean_P] = fit.coefficients_P, fit.uncertainty_P
        root_DD = coefficients_P.new_zeros(len(in_slope_D), len(in_slope_D))
        root_DD[in_slope_D.nonzero(), in_slope_D.nonzero()[:, 0]] = fit.root_DD
        return coefficients_P, uncertainty_P, root_DD

    def scales(self, output: int, target_N: Tensor, weight_N: Tensor, fit: Components) -> Scales:
        """How groups differ in their scale."""
        fitted_N = self.predict(output, target_N, weight_N, fit)
        shared_N = self.mean_NP @ fit.coefficients_P
        # residual' V^-1 residual of a group, since V^-1 residual is W (y - fitted) / noise
        row_N = weight_N * (target_N - shared_N) * (target_N - fitted_N) / fit.noise
        count_G = torch.bincount(self.group_N).double()
        square_G = torch.zeros_like(count_G).index_add(0, self.group_N, row_N)
        freedom, factor = student_scales(square_G, count_G)
        return Scales(freedom, factor, (freedom + count_G) / (freedom + square_G / factor))

    def _rows_of_groups(self) -> Iterable[Tensor]:
        return self.group_N.argsort(stable=True).split(torch.bincount(self.group_N).tolist())


NORMAL = 1000.0
"""Degrees of freedom that are practically those of a normal distribution."""
FREEDOMS = (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, NORMAL)
FACTORS = tuple(2.0 ** (step / 8) for step in range(-16, 9))


def student_scales(square_G: Tensor, count_G: Tensor) -> tuple[float, float]:
    r"""Degrees of freedom $\nu$ and a factor $c$ of the variances, of greatest likelihood on a grid:

    $$ \log p = \log \Gamma\bigl(\tfrac{\nu + n}{2}\bigr) - \log \Gamma\bigl(\tfrac\nu2\bigr)
       - \tfrac n2 \log (\nu c) - \tfrac{\nu + n}{2} \log\bigl(1 + \tfrac{q}{\nu c}\bigr), \qquad q = r^\top V^{-1} r $$

    the density of a multivariate Student distribution: a group's variances have an inverse gamma factor.
    """
    freedom = torch.tensor(FREEDOMS, dtype=torch.float64)[:, None, None]
    factor = torch.tensor(FACTORS, dtype=torch.float64)[:, None]
    half = (freedom + count_G) / 2
    value = half.lgamma() - (freedom / 2).lgamma() - count_G / 2 * (freedom * factor).log()
    value = (value - half * (1 + square_G / (freedom * factor)).log()).sum(-1)
    best = divmod(int(value.argmax()), len(FACTORS))
    return FREEDOMS[best[0]], FACTORS[best[1]]
