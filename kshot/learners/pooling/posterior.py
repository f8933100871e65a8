"""The posterior of linear weights with a normal prior: of numbers in closed form, of classes around its mode.

Shape legend: N rows, D features; "..." are leading axes, one entry for each of several outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def posterior(
    feat_ND: Tensor, target_N: Tensor, weight_N: Tensor, prior: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The posterior of weights $u \sim N(0, \Lambda)$, $\Lambda = L L^\top$, given $y = F u + \epsilon$:

    $$ \Sigma = (\Lambda^{-1} + F^\top W F / \sigma^2)^{-1}, \qquad \mu = \Sigma F^\top W y / \sigma^2 $$

    Solved in N equations by Woodbury's identity if there are fewer rows than features. $\Lambda$ may be singular.

    Args:
        feat_ND: $F$, (..., N, D).
        target_N: $y$, (..., N).
        weight_N: row weights, the diagonal of $W$, (..., N).
        prior: $L$, (..., D, D), or standard deviations (D,) if $\Lambda$ is diagonal.
        noise: the variance $\sigma^2$, () or (...).

    Returns:
        $\mu$ (..., D) and $\Sigma$ (..., D, D).
    """
    diagonal = prior.ndim == 1
    root_N, noise = weight_N.sqrt(), noise[..., None, None]
    scaled_ND = root_N[..., None] * (feat_ND * prior if diagonal else feat_ND @ prior)
    column_N1 = (root_N * target_N)[..., None]
    rows, size = scaled_ND.shape[-2:]
    fewer_rows = rows < size  # which a trace of symbolic sizes can decide, but not take the minimum of
    one = torch.eye(rows if fewer_rows else size, dtype=feat_ND.dtype, device=feat_ND.device)
    if fewer_rows:
        solved = torch.linalg.solve(scaled_ND @ scaled_ND.mT + noise * one, scaled_ND)
        inner_DD = torch.eye(size, dtype=one.dtype, device=one.device) - scaled_ND.mT @ solved
        mean_D = (solved.mT @ column_N1)[..., 0]
    else:
        inverse_DD = torch.linalg.inv(scaled_ND.mT @ scaled_ND + noise * one)
        inner_DD, mean_D = noise * inverse_DD, (inverse_DD @ (scaled_ND.mT @ column_N1))[..., 0]
    if diagonal:
        return prior * mean_D, (prior[:, None] * inner_DD * prior).contiguous()
    return (prior @ mean_D[..., None])[..., 0], (prior @ inner_DD @ prior.mT).contiguous()


def logistic_posterior(
    feat_ND: Tensor, label_N: Tensor, offset_N: Tensor, weight_N: Tensor, root_DD: Tensor, *, steps: int
) -> tuple[Tensor, Tensor]:
    r"""The normal approximation at the mode of the posterior of a logistic regression.

    $$ u \sim N(0, L L^\top), \qquad P(y_i = 1) = \mathrm{sigmoid}(o_i + u^\top f_i) $$

    Each step is the posterior of a normal regression,

    $$ \eta = o + F u, \quad \lambda_i = \frac{\tanh(\eta_i / 2)}{2 \eta_i}, \quad
       u \leftarrow E[u \mid z], \quad z_i = \frac{y_i - 1/2}{\lambda_i} - o_i, \text{ with weights } w_i \lambda_i $$

    which increases the posterior density always, so that no step length is needed. The covariance is the inverse of
    minus the Hessian there, with weights $w_i p_i (1 - p_i)$.

    Args:
        feat_ND: $F$, (..., N, D).
        label_N: $y$, 0 to 1, (..., N).
        offset_N: $o$, the logits before adapting, (..., N).
        weight_N: $w$, (..., N).
        root_DD: $L$, (..., D, D).
        steps: number of steps.

    References:
        Jaakkola, Jordan: Bayesian Parameter Estimation via Variational Methods, Statistics and Computing 10, 2000 (the
        bound); Polson, Scott, Windle: Bayesian Inference for Logistic Models Using Polya-Gamma Latent Variables, JASA
        2013, arXiv:1205.0310 (the steps are expectation maximisation).
    """
    one = torch.ones((), dtype=feat_ND.dtype, device=feat_ND.device)
    logit_N = offset_N
    for _ in range(steps):
        curvature_N = half_tanh_ratio(logit_N)
        mean_D, _ = posterior(feat_ND, (label_N - 0.5) / curvature_N - offset_N, weight_N * curvature_N, root_DD, one)
        logit_N = offset_N + (feat_ND @ mean_D[..., None])[..., 0]
    probability_N = logit_N.sigmoid()
    _, covariance_DD = posterior(feat_ND, offset_N, weight_N * probability_N * (1 - probability_N), root_DD, one)
    return mean_D, covariance_DD


def half_tanh_ratio(logit: Tensor) -> Tensor:
    r"""$\tanh(\eta / 2) / (2 \eta)$, 1/4 at 0, with derivatives of all orders that are finite."""
    small = logit.abs() < 1e-3
    safe = torch.where(small, 1.0, logit)
    return torch.where(small, 0.25 - logit.square() / 48, (0.5 * safe).tanh() / (2 * safe))
