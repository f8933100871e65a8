r"""Restricted maximum likelihood of a linear mixed model: what groups share, how they differ, and the noise.

$$ y_g = Z_g \beta + \Phi_g u_g + \epsilon_g, \qquad \beta \sim N(0, \mathrm{diag}(\tau^2)), \quad
   u_g \sim N(0, \Sigma), \quad \epsilon_{gi} \sim N(0, \sigma^2 / w_{gi}) $$

A group's rows are rotated once, so that a step of the optimiser costs as much as if no group had more rows than a
deviation has features. The derivatives are in closed form.

Shape legend: N rows, G groups, R rotated rows of a group, P features of the mean, Q = P + 1, D features of a group's
deviation, B blocks of the mean.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
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


class Compressed(NamedTuple):
    r"""Rows of groups, rotated within each group so that R = min(most rows of a group, D) of them hold all deviations.

    With $W_g^{1/2} \Phi_g = Q_g R_g$, the rows are $R_g$ and $Q_g^\top W_g^{1/2} [Z_g, y_g]$; what $Q_g$ does not span
    is left as sums of products.

    Attributes:
        slope_GRD: $R_g$, with rows of 0 in groups of fewer rows.
        both_GRQ: $Q_g^\top W_g^{1/2} [Z_g, y_g]$; Q is P + 1.
        rest_QQ: the sum over groups of products of what is left of $W_g^{1/2} [Z_g, y_g]$.
        rows: N.
        log_weight: the sum of $\log w$.
    """

    slope_GRD: Tensor
    both_GRQ: Tensor
    rest_QQ: Tensor
    rows: int
    log_weight: float

    @classmethod
    def of(cls, rows: GroupedRows) -> Compressed:
        """Rotate the rows."""
        root_N1 = rows.weight_N.sqrt()[:, None]
        slope_ND, both_NQ = root_N1 * rows.slope_ND, root_N1 * torch.cat([rows.mean_NP, rows.target_N[:, None]], 1)
        order, counts = rows.group_N.argsort(stable=True), torch.bincount(rows.group_N).tolist()
        D, Q = slope_ND.shape[1], both_NQ.shape[1]
        size = len(counts), min(max(counts), D)
        slope_GRD, both_GRQ = slope_ND.new_zeros(*size, D), slope_ND.new_zeros(*size, Q)
        rest_QQ = slope_ND.new_zeros(Q, Q)
        parts = zip(slope_ND[order].split(counts), both_NQ[order].split(counts))
        for slope_RD, both_RQ, (slope_nD, both_nQ) in zip(slope_GRD, both_GRQ, parts):
            if len(slope_nD) > D:
                basis_nD, slope_nD = torch.linalg.qr(slope_nD)
                rotated_DQ = basis_nD.mT @ both_nQ
                left_nQ = both_nQ - basis_nD @ rotated_DQ
                rest_QQ += left_nQ.mT @ left_nQ
                both_nQ = rotated_DQ
            slope_RD[: len(slope_nD)], both_RQ[: len(slope_nD)] = slope_nD, both_nQ
        return cls(slope_GRD, both_GRQ, rest_QQ, len(order), float(rows.weight_N.log().sum()))


class Gradients(NamedTuple):
    """Derivatives of the log marginal density by the root (D, D), by log noise (), and by log spreads (P,)."""

    root_DD: Tensor
    log_noise: Tensor
    log_spread_P: Tensor


class Marginal(NamedTuple):
    r"""The log marginal density of the targets, and mean and standard deviations (P,) of $\beta$ given them."""

    value: float
    coefficients_P: Tensor
    uncertainty_P: Tensor
    gradients: Gradients


def log_marginal(rows: Compressed, root_DD: Tensor, noise: Tensor, spread_P: Tensor) -> Marginal:
    r"""The log marginal density of the targets with its derivatives, and $\beta \mid y$.

    With $V_g = \sigma^2 W_g^{-1} + \Phi_g L L^\top \Phi_g^\top$, $S = \sum_g [Z_g, y_g]^\top V_g^{-1} [Z_g, y_g]$ and
    $\Lambda = \mathrm{diag}(\tau^{-2}) + S_{zz}$, the density is $-\tfrac12 \ell$ with

    $$ \ell = N \log 2\pi + \sum_g \log |V_g| + \log |\Lambda| + \sum_p \log \tau_p^2
       + S_{yy} - S_{yz} \Lambda^{-1} S_{zy} $$

    In the rotated rows $V_g = \sigma^2 (I + F_g F_g^\top) = \sigma^2 M_g$ with $F_g = R_g L / \sigma$. With
    $K K^\top = \partial \ell / \partial S = \mathrm{diag}(\Lambda^{-1}, 0) + (-\beta, 1)^\top (-\beta, 1)$ and
    $Y_g = M_g^{-1} B_g K$, $B_g$ the rotated rows of $[Z, y]$:

    $$ \frac{\partial \ell}{\partial M_g} = \Gamma_g = M_g^{-1} - \frac{Y_g Y_g^\top}{\sigma^2}, \qquad
       \frac{\partial \ell}{\partial L} = \frac2\sigma \sum_g R_g^\top \Gamma_g F_g $$

    $$ \frac{\partial \ell}{\partial \log \sigma^2} = N - \mathrm{tr}(K^\top S K)
       - \sum_g \mathrm{tr}(F_g^\top \Gamma_g F_g), \qquad
       \frac{\partial \ell}{\partial \log \tau_p} = 2 - 2 \frac{(\Lambda^{-1})_{pp} + \beta_p^2}{\tau_p^2} $$
    """
    sigma, eye_RR = noise.sqrt(), torch.eye(rows.slope_GRD.shape[1], dtype=root_DD.dtype)
    scaled_GRD = rows.slope_GRD @ (root_DD / sigma)
    inner_GRR = torch.linalg.cholesky(eye_RR + scaled_GRD @ scaled_GRD.mT)
    half_GRQ = torch.linalg.solve_triangular(inner_GRR, rows.both_GRQ, upper=False)
    flat = half_GRQ.flatten(0, 1)
    total_QQ = (rows.rest_QQ + flat.mT @ flat) / noise
    log_det = 2 * inner_GRR.diagonal(dim1=1, dim2=2).log().sum() + rows.rows * noise.log() - rows.log_weight

    eye_PP = torch.eye(len(spread_P), dtype=root_DD.dtype)
    factor_PP = torch.linalg.cholesky(total_QQ[:-1, :-1] * spread_P[:, None] * spread_P + eye_PP)
    inverse_PP = torch.linalg.solve_triangular(factor_PP, torch.diag(spread_P), upper=False)
    coefficients_P = inverse_PP.mT @ (inverse_PP @ total_QQ[:-1, -1])
    variance_P = inverse_PP.square().sum(0)
    log_det = log_det + 2 * factor_PP.diagonal().log().sum()
    quadratic = total_QQ[-1, -1] - total_QQ[-1, :-1] @ coefficients_P

    sensitivity_QQ = torch.zeros_like(total_QQ)
    sensitivity_QQ[:-1, :-1] = inverse_PP.mT
    sensitivity_QQ[:, -1] = torch.cat([-coefficients_P, torch.ones_like(quadratic)[None]])
    inverse_GRR = torch.linalg.solve_triangular(inner_GRR, eye_RR.expand_as(inner_GRR), upper=False)
    solved_GRQ = inverse_GRR.mT @ (flat @ sensitivity_QQ).view_as(half_GRQ)
    of_inner_GRR = inverse_GRR.mT @ inverse_GRR - solved_GRQ @ solved_GRQ.mT / noise
    of_scaled_GRD = of_inner_GRR @ scaled_GRD
    of_root_DD = 2 / sigma * rows.slope_GRD.flatten(0, 1).mT @ of_scaled_GRD.flatten(0, 1)
    explicit = rows.rows - (sensitivity_QQ * (total_QQ @ sensitivity_QQ)).sum()
    of_log_noise = explicit - (scaled_GRD * of_scaled_GRD).sum()
    of_log_spread_P = 2 - 2 * (variance_P + coefficients_P.square()) / spread_P.square()
    value = -0.5 * float(rows.rows * LOG_2PI + log_det + quadratic)
    gradients = Gradients(*(-0.5 * each for each in (of_root_DD, of_log_noise, of_log_spread_P)))
    return Marginal(value, coefficients_P, variance_P.sqrt(), gradients)


LOG_2PI = 1.8378770664093453


@dataclass
class Search:
    """The variables over which `fit_components` maximises, in units of the targets' standard deviation.

    Only what is below the diagonal of the mixing matrix counts.
    """

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
        log_scale_D, mixing_DD = self.log_scale_D, self.mixing_DD
        log_scale_D = torch.cat([log_scale_D[:at], log_scale_D.new_full((1,), 0.2).log(), log_scale_D[at:]])
        for dim in (0, 1):
            before, after = mixing_DD.split([at, mixing_DD.shape[dim] - at], dim)
            mixing_DD = torch.cat([before, torch.zeros_like(before.narrow(dim, 0, 1)), after], dim)
        return Search(log_scale_D, mixing_DD, self.log_noise, self.log_spread_B)

    def vector(self) -> np.ndarray:
        """All values."""
        return _vector(self.log_scale_D, self.mixing_DD, self.log_noise, self.log_spread_B)

    def at(self, vector: np.ndarray) -> Search:
        """The same with the values of a vector."""
        size, below = len(self.log_scale_D), _below(self.mixing_DD)
        sizes = [size, below.shape[1], 1, len(self.log_spread_B)]
        log_scale_D, mixing, log_noise, log_spread_B = torch.from_numpy(vector.copy()).split(sizes)
        mixing_DD = torch.zeros_like(self.mixing_DD)
        mixing_DD[below[0], below[1]] = mixing
        return Search(log_scale_D, mixing_DD, log_noise[0], log_spread_B)

    def bounds(self, noise: bool) -> list[tuple[float, float]]:
        """Bounds of each value; where `noise` is false the noise keeps its value."""
        scale, mixing = [(LOG_LEAST, LOG_MOST)], [(-10.0, 10.0)]
        size, log_noise = len(self.log_scale_D), float(self.log_noise)
        of_noise = (LOG_NOISE, 2.0) if noise else (log_noise, log_noise)
        return scale * size + mixing * (size * (size - 1) // 2) + [of_noise] + scale * len(self.log_spread_B)

    def root(self) -> Tensor:
        r"""The Cholesky root $L = \mathrm{diag}(s) R$ of a covariance with deviations $s$ and correlations $R R^\top$.

        The rows of $R$ are those of $I + \mathrm{tril}(X, -1)$ at unit length, so that all matrices $X$ give
        correlations, and $X = 0$ gives none.
        """
        return self.log_scale_D.exp()[:, None] * self._unit_rows()[0]

    def chained(self, of_root_DD: Tensor) -> tuple[Tensor, Tensor]:
        r"""Derivatives by $\log s$ (D,) and by $X$ (D, D), from those by the root."""
        unit_DD, length_D1 = self._unit_rows()
        scaled_DD = self.log_scale_D.exp()[:, None] * of_root_DD
        along_D1 = (scaled_DD * unit_DD).sum(1, keepdim=True)
        return along_D1[:, 0], (scaled_DD - along_D1 * unit_DD) / length_D1

    def _unit_rows(self) -> tuple[Tensor, Tensor]:
        rows_DD = self.mixing_DD.tril(-1) + torch.eye(len(self.mixing_DD), dtype=self.mixing_DD.dtype)
        length_D1 = rows_DD.square().sum(1, keepdim=True).sqrt()
        return rows_DD / length_D1, length_D1


def _below(matrix_DD: Tensor) -> Tensor:
    return torch.tril_indices(len(matrix_DD), len(matrix_DD), -1)


def _vector(log_scale_D: Tensor, mixing_DD: Tensor, log_noise: Tensor, log_spread_B: Tensor) -> np.ndarray:
    row, column = _below(mixing_DD)
    return torch.cat([log_scale_D, mixing_DD[row, column], log_noise[None], log_spread_B]).numpy()


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
    from scipy.optimize import minimize

    unit = 1.0 if noise is not None else _deviation(rows)
    compressed = Compressed.of(rows._replace(target_N=rows.target_N / unit))
    size, blocks = rows.slope_ND.shape[1], int(rows.block_P.max()) + 1
    first = start or Search.first(size, blocks, noise)

    def at(search: Search) -> tuple[Marginal, Tensor]:
        spread_B = search.log_spread_B.exp()
        spread_B[:free_blocks] = math.exp(LOG_MOST)
        return log_marginal(compressed, search.root(), search.log_noise.exp(), spread_B[rows.block_P]), spread_B

    def objective(vector: np.ndarray) -> tuple[float, np.ndarray]:
        search = first.at(vector)
        (value, _, _, by), _ = at(search)
        of_log_scale_D, of_mixing_DD = search.chained(-by.root_DD)
        slope_D = slope_penalty * search.log_scale_D.exp()
        slope_D[0] = 0
        of_mixing_DD = of_mixing_DD + correlation_penalty * search.mixing_DD
        of_spread_B = torch.zeros_like(search.log_spread_B).index_add(0, rows.block_P, -by.log_spread_P)
        of_spread_B[:free_blocks] = 0
        penalty = slope_D.sum() + 0.5 * correlation_penalty * search.mixing_DD.square().sum()
        gradient = _vector(of_log_scale_D + slope_D, of_mixing_DD, -by.log_noise, of_spread_B)
        return float(penalty) - value, gradient

    bounds = first.bounds(noise is None)
    options = {"maxiter": steps, "maxcor": 20, "ftol": tolerance}
    with _one_thread():
        found = minimize(objective, first.vector(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    search = first.at(found.x)
    best, spread_B = at(search)
    estimates = unit * best.coefficients_P, unit * best.uncertainty_P, unit * search.root()
    variance, value = unit**2 * search.log_noise.exp(), best.value - len(rows.target_N) * math.log(unit)
    return Components(*estimates, variance, unit * spread_B, value, search)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The matrices are too small to be split: two threads took three times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _deviation(rows: GroupedRows) -> float:
    """The weighted standard deviation of the targets; 1 if they are all equal."""
    share_N = rows.weight_N / rows.weight_N.sum()
    value = float((share_N @ (rows.target_N - share_N @ rows.target_N).square()).sqrt())
    return value if value > 1e-9 else 1.0
