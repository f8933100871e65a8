r"""Mixed models: coefficients that all groups share, and effects of each group around them.

$$ y = X \beta + Z b_g + \epsilon, \qquad b_g \sim N(0, \sigma^2 \Lambda \Lambda^\top), \qquad
   \epsilon \sim N(0, \sigma^2 I) $$

for numbers, and the same linear predictor in the logits of classes. All is computed in float64 on the CPU.

Shape legend: N rows, p fixed features, q features with an effect of the group, G groups, C classes, R rows of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1e-10
"""Floor of variances, as a share of the variance of the targets."""


class MixedModel(NamedTuple):
    r"""A fitted mixed model.

    Attributes:
        coefficients: (p,) of one number, or (p, C).
        factor: (q, q) lower triangular, the relative factor $\Lambda$ of the covariance of the effects.
        noise: $\sigma^2$, (); 1 for classes.
    """

    coefficients: Tensor
    factor: Tensor
    noise: Tensor

    @property
    def covariance(self) -> Tensor:
        """Of the effects, (q, q)."""
        return self.noise * self.factor @ self.factor.mT


def fit_mixed_model(
    fixed_Np: Tensor,
    random_Nq: Tensor,
    target_N: Tensor,
    group_N: np.ndarray,
    *,
    ridge: float = 1.0,
    reml: bool = True,
    diagonal: bool = False,
) -> MixedModel:
    r"""Variance components by restricted maximum likelihood, profiled over $\beta$ and $\sigma^2$.

    $$ -2 \ell_R(\Lambda) = (N - p) \log \frac{r^2(\Lambda)}{N - p}
       + \sum_g \log |I + \Lambda^\top Z_g^\top Z_g \Lambda| + \log |X^\top V^{-1} X + \lambda I| $$

    with $V = I + Z \Lambda \Lambda^\top Z^\top$ and $r^2$ the minimum of
    $(y - X\beta)^\top V^{-1} (y - X\beta) + \lambda \lVert \beta_{2:} \rVert^2$. It is minimised over $\Lambda$ by
    L-BFGS with exact derivatives; rows enter through sums over each group, so that a step costs $O(G q^2 (p + q))$.

    Args:
        fixed_Np: $X$; its first column is 1 and is not penalised.
        random_Nq: $Z$.
        target_N: $y$.
        group_N: the group of each row, ascending from 0.
        ridge: $\lambda$, one pseudo-observation of standardised features by default, so that features may be collinear.
        reml: False for maximum likelihood.
        diagonal: whether effects are independent.

    Example:
        >>> one, group = torch.ones(6, 1).double(), np.array([0, 0, 1, 1, 2, 2])
        >>> target = torch.tensor([1.0, 2.0, 4.0, 5.0, 7.0, 8.0]).double()
        >>> model = fit_mixed_model(one, one, target, group)
        >>> [round(float(value), 3) for value in (model.coefficients, model.noise, model.covariance)]
        [4.5, 0.5, 8.75]

    References:
        Bates, Mächler, Bolker, Walker: Fitting Linear Mixed-Effects Models Using lme4, Journal of Statistical Software
        67, 2015, arXiv:1406.5823, sections 3.1 and 3.4. Deviation: the ridge; 0 gives lme4's estimates.
    """
    p, q = fixed_Np.shape[1], random_Nq.shape[1]
    both = torch.cat([fixed_Np, target_N[:, None]], 1).double()
    random_Nq = random_Nq.double()
    starts = np.flatnonzero(np.diff(group_N, prepend=-1))
    sizes = np.diff(starts, append=len(group_N)).tolist()
    parts = list(zip(random_Nq.split(sizes), both.split(sizes)))
    zz_Gqq = torch.stack([z.mT @ z for z, _ in parts])
    zx_Gqp = torch.stack([z.mT @ x for z, x in parts])  # with the target as the last column
    total = both.mT @ both
    penalty = torch.diag(torch.tensor([SMALLEST] + [ridge + SMALLEST] * (p - 1)).double())
    count = max(len(both) - p, 1) if reml else len(both)
    floor = SMALLEST * (float(both[:, -1].var(correction=0)) * len(both) + 1e-20)
    where = np.arange(q) * (q + 1) if diagonal else np.flatnonzero(np.tri(q).ravel())

    def solve(factor_qq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The deviance, the coefficients and the residual sum."""
        inner_Gqq = torch.eye(q).double() + factor_qq.mT @ zz_Gqq @ factor_qq
        root_Gqq = torch.linalg.cholesky(inner_Gqq)
        half_Gqp = torch.linalg.solve_triangular(root_Gqq, factor_qq.mT @ zx_Gqp, upper=False)
        normal = total - torch.einsum("gqi,gqj->ij", half_Gqp, half_Gqp)
        gram_pp = normal[:p, :p] + penalty
        beta_p = torch.linalg.solve(gram_pp, normal[:p, -1])
        rest = (normal[-1, -1] - normal[:p, -1] @ beta_p).clamp_min(floor)
        deviance = count * (rest / count).log() + 2 * root_Gqq.diagonal(dim1=1, dim2=2).log().sum()
        return deviance + (gram_pp.logdet() if reml else 0.0), beta_p, rest

    def factor_of(theta: np.ndarray | Tensor) -> Tensor:
        values = torch.as_tensor(theta, dtype=torch.float64)
        return torch.zeros(q * q).double().index_copy(0, torch.from_numpy(where), values).reshape(q, q)

    def deviance(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return _with_gradient(lambda values: solve(factor_of(values))[0], theta)

    from scipy.optimize import minimize

    start = np.eye(q).ravel()[where] * np.where(where == 0, 0.7, 0.3)
    found = minimize(deviance, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    factor_qq = factor_of(found.x)
    _, beta_p, rest = solve(factor_qq)
    return MixedModel(beta_p, factor_qq, rest / count)


def best_effects(random_Nq: Tensor, residual_N: Tensor, weight_N: Tensor, model: MixedModel) -> tuple[Tensor, Tensor]:
    r"""The best linear unbiased prediction of the effects of one group from the residuals $y - X \beta$ of its rows.

    $$ \hat b = \Lambda (I + \Lambda^\top Z^\top W Z \Lambda)^{-1} \Lambda^\top Z^\top W r, \qquad
       \operatorname{Cov}(b \mid y) = \sigma^2 H H^\top $$

    Returns:
        $\hat b$ (q,) and $H$ (q, q), the relative factor of the posterior covariance.
    """
    scaled_Nq = random_Nq @ model.factor
    inner_qq = torch.eye(scaled_Nq.shape[1]).double() + scaled_Nq.mT @ (weight_N[:, None] * scaled_Nq)
    root_qq = torch.linalg.cholesky(inner_qq)
    effects_q = torch.cholesky_solve((scaled_Nq.mT @ (weight_N * residual_N))[:, None], root_qq)[:, 0]
    half_qq = torch.linalg.solve_triangular(root_qq, model.factor.mT, upper=False).mT
    return model.factor @ effects_q, half_qq


def fit_mixed_logits(
    fixed_Np: Tensor,
    random_Nq: Tensor,
    target_NC: Tensor,
    group_N: np.ndarray,
    *,
    offset_NC: Tensor | None = None,
    ridge: float = 1.0,
    rounds: int = 20,
    max_rows: int = 50,
    max_groups: int = 300,
) -> MixedModel:
    r"""A mixed model of the logits of classes, by expectation and maximisation with Laplace's approximation.

    $$ \ell_{nc} = o_{nc} + x_n^\top \beta_c + z_n^\top b_{gc}, \qquad b_{gc} \sim N(0, \Lambda \Lambda^\top), \qquad
       \Lambda \Lambda^\top \leftarrow \frac{1}{GC} \sum_{gc} \bigl(\hat b_{gc} \hat b_{gc}^\top + V_{gc}\bigr) $$

    with $\hat b$ the mode of the posterior and $V$ the inverse of its Hessian; $\beta$ is fitted anew in each round,
    given the modes. The classes share one covariance.

    Args:
        fixed_Np, random_Nq, group_N, ridge: as in `fit_mixed_model`.
        target_NC: one-hot or soft labels.
        offset_NC: $o$, added to the logits; 0 by default.
        rounds: number of rounds.
        max_rows, max_groups: number of rows of a group, and of groups, that are used.

    References:
        Breslow, Clayton: Approximate Inference in Generalized Linear Mixed Models, JASA 88, 1993. Deviation: the
        variances by expectation and maximisation instead of restricted likelihood of a working variate.
    """
    keep_N = _first_rows(group_N, max_rows) & (group_N < max_groups)
    keep = torch.from_numpy(np.flatnonzero(keep_N))
    fixed_Np, random_Nq, target_NC = (part[keep].double() for part in (fixed_Np, random_Nq, target_NC))
    offset_NC = torch.zeros_like(target_NC) if offset_NC is None else offset_NC[keep].double()
    group = torch.from_numpy(group_N[keep_N])
    place = torch.from_numpy(np.arange(len(group)) - np.searchsorted(group_N[keep_N], group_N[keep_N]))
    num_groups, most = int(group[-1]) + 1, int(place.max()) + 1

    def padded(rows: Tensor) -> Tensor:
        return torch.zeros(num_groups, most, *rows.shape[1:]).double().index_put((group, place), rows)

    random_GRq, target_GRC = padded(random_Nq), padded(target_NC)
    weight_GR = padded(torch.ones(len(group)).double())
    q, C = random_Nq.shape[1], target_NC.shape[1]
    factor_qq = torch.eye(q).double() * torch.tensor([0.7] + [0.3] * (q - 1)).double()[:, None]
    beta_pC = torch.zeros(fixed_Np.shape[1], C).double()
    effect_NC, mode_GqC = torch.zeros_like(target_NC), torch.zeros(num_groups, q, C).double()
    for _ in range(rounds):
        beta_pC = fit_logits(fixed_Np, target_NC, offset_NC + effect_NC, ridge=ridge, start_pC=beta_pC)
        logit_NC = offset_NC + fixed_Np @ beta_pC
        mode_GqC, covariance = best_logit_effects(
            random_GRq, target_GRC, weight_GR, padded(logit_NC), factor_qq, start_GqC=mode_GqC
        )
        of_class = torch.stack([covariance[:, c::C, c::C] for c in range(C)], 1)  # (G, C, q, q)
        second_qq = torch.einsum("gqc,grc->qr", mode_GqC, mode_GqC) / (num_groups * C) + of_class.mean((0, 1))
        moved_qq = factor_qq @ second_qq @ factor_qq.mT
        effect_NC = torch.einsum("nq,nqc->nc", random_Nq @ factor_qq, mode_GqC[group])
        last_qq, factor_qq = factor_qq, torch.linalg.cholesky(moved_qq + SMALLEST * torch.eye(q).double())
        if float((factor_qq - last_qq).abs().max()) < 1e-3:
            break
    return MixedModel(beta_pC, factor_qq, torch.tensor(1.0).double())


def best_logit_effects(
    random_GRq: Tensor,
    target_GRC: Tensor,
    weight_GR: Tensor,
    offset_GRC: Tensor,
    factor_qq: Tensor,
    *,
    steps: int = 20,
    start_GqC: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The mode of the posterior of $u$, where the effects are $b = \Lambda u$, by Newton's method with a line search.

    Returns:
        $u$ (G, q, C), and the inverse of the Hessian (G, q C, q C), with the classes as the faster axis.
    """
    scaled_GRq = random_GRq @ factor_qq
    G, _, q = scaled_GRq.shape
    C = target_GRC.shape[2]
    mode_GqC = torch.zeros(G, q, C).double() if start_GqC is None else start_GqC
    identity = torch.eye(q * C).double()

    def objective(u_GqC: Tensor) -> Tensor:
        log_p = (offset_GRC + scaled_GRq @ u_GqC).log_softmax(2)
        return 0.5 * u_GqC.square().sum((1, 2)) - (weight_GR * (target_GRC * log_p).sum(2)).sum(1)

    def hessian(u_GqC: Tensor) -> tuple[Tensor, Tensor]:
        p_GRC = (offset_GRC + scaled_GRq @ u_GqC).softmax(2)
        gradient = u_GqC - scaled_GRq.mT @ (weight_GR[..., None] * (target_GRC - p_GRC))
        spread = torch.diag_embed(p_GRC) - p_GRC[..., None] * p_GRC[..., None, :]
        curve = torch.einsum("gr,grq,grs,grcd->gqcsd", weight_GR, scaled_GRq, scaled_GRq, spread)
        return gradient, identity + curve.reshape(G, q * C, q * C)

    for _ in range(steps):
        gradient, curve = hessian(mode_GqC)
        step = torch.linalg.solve(curve, gradient.reshape(G, -1, 1)).reshape(G, q, C)
        tried = torch.stack([mode_GqC - size * step for size in (1.0, 0.5, 0.2, 0.05, 0.0)])
        values = torch.stack([objective(one) for one in tried])
        mode_GqC = tried[values.argmin(0), torch.arange(G)]
        if float(step.abs().max()) < 1e-6:
            break
    return mode_GqC, torch.linalg.inv(hessian(mode_GqC)[1])


def fit_logits(
    fixed_Np: Tensor, target_NC: Tensor, offset_NC: Tensor, *, ridge: float, start_pC: Tensor | None = None
) -> Tensor:
    r"""Coefficients (p, C) of multinomial logistic regression with an offset and a penalty of all but the first row."""
    shape = fixed_Np.shape[1], target_NC.shape[1]
    penalty = torch.full((shape[0], 1), ridge).double()
    penalty[0] = 1e-3  # the logits of a class without rows stay finite

    def loss(flat: Tensor) -> Tensor:
        beta_pC = flat.reshape(shape)
        log_p = (offset_NC + fixed_Np @ beta_pC).log_softmax(1)
        return (0.5 * (penalty * beta_pC.square()).sum() - (target_NC * log_p).sum()) / len(target_NC)

    from scipy.optimize import minimize

    start = np.zeros(shape).ravel() if start_pC is None else start_pC.numpy().ravel()
    found = minimize(lambda flat: _with_gradient(loss, flat), start, jac=True, method="L-BFGS-B")
    return torch.from_numpy(found.x).reshape(shape)


def _with_gradient(function: Callable[[Tensor], Tensor], values: np.ndarray) -> tuple[float, np.ndarray]:
    with torch.enable_grad():
        leaf = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), gradient.numpy()


def _first_rows(group_N: np.ndarray, most: int) -> np.ndarray:
    """Mask (N,) of the first rows of each group, at most `most`."""
    return np.arange(len(group_N)) - np.searchsorted(group_N, group_N) < most
