r"""Restricted maximum likelihood of a linear mixed model: what groups share, how they differ, and the noise.

$$ y_g = Z_g \beta + \Phi_g u_g + \epsilon_g, \qquad \beta \sim N(0, \mathrm{diag}(\tau^2)), \quad
   u_g \sim N(0, \Sigma), \quad \epsilon_{gi} \sim N(0, \sigma^2 / w_{gi}) $$

Everything is computed from sums over the rows of each group, so that a step of the optimiser costs the same for
groups of any size.

Shape legend: N rows, G groups, P features of the mean, D features of a group's deviation, B blocks of the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

STEPS = 60
"""Of L-BFGS."""


class GroupedRows(NamedTuple):
    r"""Rows of training groups.

    Attributes:
        mean_NP: $Z$, features of what groups share.
        slope_ND: $\Phi$, features of how a group deviates; the first is 1.
        target_N: $y$.
        weight_N: $w > 0$.
        group_N: number of each row's group, int64.
        block_P: block of each feature of the mean, int64; the features of a block have one $\tau$.
    """

    mean_NP: Tensor
    slope_ND: Tensor
    target_N: Tensor
    weight_N: Tensor
    group_N: Tensor
    block_P: Tensor


class Components(NamedTuple):
    r"""Estimates.

    Attributes:
        coefficients_P: $E[\beta \mid y]$.
        uncertainty_P: standard deviations of $\beta \mid y$.
        root_DD: Cholesky root of $\Sigma$.
        noise: $\sigma^2$, ().
        spread_B: $\tau$ of each block.
        log_marginal: the log density of the targets, with $\beta$ and $u$ integrated out, without the priors of the
            variances.
        search: what another fit can start from.
    """

    coefficients_P: Tensor
    uncertainty_P: Tensor
    root_DD: Tensor
    noise: Tensor
    spread_B: Tensor
    log_marginal: float
    search: Search


class Sums(NamedTuple):
    """Sums over rows, with their weights: products of the features and targets, of each group or of all rows."""

    slope_GDD: Tensor
    cross_GDQ: Tensor
    total_QQ: Tensor
    rows: float
    log_weight: float

    @classmethod
    def of(cls, rows: GroupedRows) -> Sums:
        """Sum the rows."""
        both_NQ = torch.cat([rows.mean_NP, rows.target_N[:, None]], 1)
        weighted_ND = rows.slope_ND * rows.weight_N[:, None]
        order = rows.group_N.argsort(stable=True)
        counts = torch.bincount(rows.group_N).tolist()
        slope, cross = [], []
        parts = zip(*(each[order].split(counts) for each in (rows.slope_ND, weighted_ND, both_NQ)))
        for slope_nD, weighted_nD, both_nQ in parts:
            slope.append(weighted_nD.mT @ slope_nD)
            cross.append(weighted_nD.mT @ both_nQ)
        total_QQ = both_NQ.mT @ (both_NQ * rows.weight_N[:, None])
        log_weight = float(rows.weight_N.log().sum())
        return cls(torch.stack(slope), torch.stack(cross), total_QQ, float(len(rows.target_N)), log_weight)


def covariance_root(log_scale_D: Tensor, mixing_DD: Tensor) -> Tensor:
    r"""The Cholesky root $L = \mathrm{diag}(s) R$ of a covariance with deviations $s$ and correlations $R R^\top$.

    The rows of $R$ are those of $I + \mathrm{tril}(X, -1)$ at unit length, so that all matrices $X$ give
    correlations, and $X = 0$ gives none.
    """
    lower_DD = mixing_DD.tril(-1) + torch.eye(mixing_DD.shape[-1], dtype=mixing_DD.dtype, device=mixing_DD.device)
    return log_scale_D.exp()[..., None] * lower_DD / lower_DD.square().sum(-1, keepdim=True).sqrt()


def log_marginal(sums: Sums, root_DD: Tensor, noise: Tensor, spread_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The log marginal density of the targets (), and mean and standard deviations (P,) of $\beta \mid y$.

    With $V_g = \sigma^2 W_g^{-1} + \Phi_g \Sigma \Phi_g^\top$, $S = \sum_g [Z_g, y_g]^\top V_g^{-1} [Z_g, y_g]$ and
    $\Lambda = \mathrm{diag}(\tau^{-2}) + S_{zz}$:

    $$ -\tfrac12 \Bigl(N \log 2\pi + \sum_g \log |V_g| + \log |\Lambda| + \sum_p \log \tau_p^2
       + S_{yy} - S_{yz} \Lambda^{-1} S_{zy}\Bigr) $$
    """
    eye_DD = torch.eye(len(root_DD), dtype=root_DD.dtype, device=root_DD.device)
    inner_GDD = torch.linalg.cholesky(eye_DD + root_DD.mT @ sums.slope_GDD @ root_DD / noise)
    solved_GDQ = torch.linalg.solve_triangular(inner_GDD, root_DD.mT @ sums.cross_GDQ, upper=False)
    flat = solved_GDQ.flatten(0, 1)
    total_QQ = (sums.total_QQ - flat.mT @ flat / noise) / noise
    log_det = 2 * inner_GDD.diagonal(dim1=1, dim2=2).log().sum() + sums.rows * noise.log() - sums.log_weight
    precision_PP = total_QQ[:-1, :-1] * spread_P[:, None] * spread_P + torch.eye(
        len(spread_P), dtype=root_DD.dtype, device=root_DD.device
    )
    factor_PP = torch.linalg.cholesky(precision_PP)
    right_P = spread_P * total_QQ[:-1, -1]
    whitened_P = torch.linalg.solve_triangular(factor_PP, right_P[:, None], upper=False)
    coefficients_P = spread_P * torch.linalg.solve_triangular(factor_PP.mT, whitened_P, upper=True)[:, 0]
    log_det = log_det + 2 * factor_PP.diagonal().log().sum()
    quadratic = total_QQ[-1, -1] - whitened_P.square().sum()
    inverse_PP = torch.linalg.solve_triangular(factor_PP, torch.diag(spread_P), upper=False)
    return -0.5 * (sums.rows * LOG_2PI + log_det + quadratic), coefficients_P, inverse_PP.square().sum(0).sqrt()


LOG_2PI = 1.8378770664093453


@dataclass
class Search:
    """The variables over which `fit_components` maximises, in units of the targets' standard deviation."""

    log_scale_D: Tensor
    mixing_DD: Tensor
    log_noise: Tensor
    log_spread_B: Tensor

    @classmethod
    def first(cls, size: int, blocks: int, noise: float | None) -> Search:
        """Where the search starts: deviations of the intercept larger than others, no correlations."""
        log_scale_D = torch.full((size,), 0.2, dtype=torch.float64).log()
        log_scale_D[0] += 1.0
        log_noise = torch.tensor(0.5 if noise is None else noise, dtype=torch.float64).log()
        log_spread_B = torch.full((blocks,), 0.2, dtype=torch.float64).log()
        return cls(log_scale_D, torch.zeros(size, size, dtype=torch.float64), log_noise, log_spread_B)

    def with_feature(self, at: int) -> Search:
        """The same with one more feature of the deviations."""
        log_scale_D, mixing_DD = self.log_scale_D.detach(), self.mixing_DD.detach()
        log_scale_D = torch.cat([log_scale_D[:at], log_scale_D.new_full((1,), 0.2).log(), log_scale_D[at:]])
        for dim in (0, 1):
            before, after = mixing_DD.split([at, mixing_DD.shape[dim] - at], dim)
            mixing_DD = torch.cat([before, torch.zeros_like(before.narrow(dim, 0, 1)), after], dim)
        return Search(log_scale_D, mixing_DD, self.log_noise.detach(), self.log_spread_B.detach())

    def variables(self) -> list[Tensor]:
        """All of them."""
        return [self.log_scale_D, self.mixing_DD, self.log_noise, self.log_spread_B]

    def get(self) -> np.ndarray:
        """Their values as one vector."""
        return torch.cat([variable.detach().flatten() for variable in self.variables()]).numpy()

    def set(self, values: np.ndarray) -> None:
        """Set their values, as leaves of a new graph."""
        parts = torch.from_numpy(values.copy()).split([variable.numel() for variable in self.variables()])
        new = [part.view_as(old).requires_grad_() for part, old in zip(parts, self.variables())]
        self.log_scale_D, self.mixing_DD, self.log_noise, self.log_spread_B = new

    def bounds(self, noise: bool) -> list[tuple[float, float]]:
        """Bounds of each value; where `noise` is false the noise keeps its value."""
        scale = [(LOG_LEAST, LOG_MOST)]
        size = len(self.log_scale_D)
        below = np.tri(size, size, -1, dtype=bool).flatten()
        mixing = [(-10.0, 10.0) if free else (0.0, 0.0) for free in below]
        of_noise = (LOG_NOISE, 2.0) if noise else (float(self.log_noise), float(self.log_noise))
        return scale * size + mixing + [of_noise] + scale * len(self.log_spread_B)


LOG_LEAST, LOG_MOST, LOG_NOISE = math.log(1e-4), math.log(30.0), math.log(1e-5)
"""Of the least and largest deviation, and the least variance of the noise; the targets' deviation is the unit."""


def fit_components(
    rows: GroupedRows,
    *,
    slope_penalty: float,
    correlation_penalty: float,
    free_blocks: int = 1,
    noise: float | None = None,
    steps: int = STEPS,
    tolerance: float = 1e-6,
    start: Search | None = None,
) -> Components:
    r"""Estimate $\Sigma$, $\sigma^2$ and $\tau$ by restricted maximum likelihood with priors, and $\beta$ given them.

    What is maximised is `log_marginal` minus $\lambda \sum_{j > 1} s_j / s_y$ and $\tfrac\kappa2 \lVert X \rVert^2$
    for the deviations $s$ and the mixing matrix $X$ of `covariance_root`: an exponential prior of each deviation but
    that of the intercept, under which features without differences between groups vanish, and a normal prior that
    pulls correlations to 0. Without the two it is REML of a model with random slopes (for $\tau \to \infty$).

    Args:
        rows: rows of at least two groups, float64.
        slope_penalty: $\lambda$.
        correlation_penalty: $\kappa$.
        free_blocks: number of first blocks of the mean whose $\tau$ is fixed at 30 deviations of the targets.
        noise: $\sigma^2$ if it is known.
        steps: largest number of steps of L-BFGS.
        tolerance: relative change of what is maximised at which the search ends.
        start: what an earlier fit to similar rows ended with.

    References:
        Laird, Ware: Random-Effects Models for Longitudinal Data, Biometrics 38, 1982; Simpson et al.: Penalising Model
        Component Complexity, Statistical Science 32, 2017 (the prior of deviations).
    """
    unit = 1.0 if noise is not None else _deviation(rows)
    sums = Sums.of(rows._replace(target_N=rows.target_N / unit))
    size, blocks = rows.slope_ND.shape[1], int(rows.block_P.max()) + 1
    search = start or Search.first(size, blocks, noise)
    least = torch.tensor(LOG_MOST, dtype=torch.float64).expand(free_blocks)

    def parts() -> tuple[Tensor, Tensor, Tensor]:
        spread_B = torch.cat([least, search.log_spread_B[free_blocks:]]).exp()
        return covariance_root(search.log_scale_D, search.mixing_DD), search.log_noise.exp(), spread_B

    @torch.enable_grad()
    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        search.set(values)
        root_DD, sigma2, spread_B = parts()
        value, _, _ = log_marginal(sums, root_DD, sigma2, spread_B[rows.block_P])
        penalty = slope_penalty * search.log_scale_D[1:].exp().sum()
        penalty = penalty + 0.5 * correlation_penalty * search.mixing_DD.square().sum()
        loss = penalty - value
        grads = torch.autograd.grad(loss, search.variables(), materialize_grads=True)
        return float(loss.detach()), torch.cat([grad.flatten() for grad in grads]).numpy()

    from scipy.optimize import minimize

    bounds = search.bounds(noise is None)
    options = {"maxiter": steps, "maxcor": 20, "ftol": tolerance}
    found = minimize(objective, search.get(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    search.set(found.x)
    with torch.no_grad():
        root_DD, sigma2, spread_B = parts()
        value, coefficients_P, uncertainty_P = log_marginal(sums, root_DD, sigma2, spread_B[rows.block_P])
    value = value - len(rows.target_N) * math.log(unit)
    estimates = unit * coefficients_P, unit * uncertainty_P, unit * root_DD
    return Components(*estimates, unit**2 * sigma2, unit * spread_B, float(value), search)


def _deviation(rows: GroupedRows) -> float:
    """The weighted standard deviation of the targets; 1 if they are all equal."""
    share_N = rows.weight_N / rows.weight_N.sum()
    value = float((share_N @ (rows.target_N - share_N @ rows.target_N).square()).sqrt())
    return value if value > 1e-9 else 1.0
