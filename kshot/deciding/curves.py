r"""The rest of a validation curve, predicted by power laws.

The figure at time $x$, such as the number of outer steps, is after times up to $x_n$ modelled as

$$ y(x) = v + b \, \frac{1 - (x / x_n)^{-c}}{c} + \epsilon, \qquad \epsilon \sim N(0, \sigma^2), $$

a power law with the asymptote $v + b / c$, which tends to a logarithm for $c \to 0$, and to a line for $c = -1$: curves
that have not begun to flatten have no asymptote. $v$ is the figure now, and $b$ its slope over $\log x$. Both have a
wide normal prior and are integrated out; $c$ and $\sigma$ are on a grid. All is a pure function of the figures: random
numbers are drawn from a fixed seed.

References:
    Domhan, Springenberg, Hutter: Speeding up Automatic Hyperparameter Optimization of Deep Neural Networks by
    Extrapolation of Learning Curves, IJCAI 2015. There eleven families are combined and sampled by MCMC; here there is
    one, in closed form, and its exponent may be known from earlier curves.

Shape legend: n points of a curve, F points in future, C exponents, S noises, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXPONENTS = (np.arange(80) - 19.5) / 20
"""The grid of $c$."""
NOISES = np.geomspace(0.05, 2.0, 12)
"""The grid of $\\sigma$, in standard errors of a figure."""
WIDTH = 3.0
"""Standard deviation of the prior of $v$ and $b$, in ranges of the curve."""
DRAWS = 2000
LEAST = 4
"""Points of a curve that are needed to predict more."""


def predict(
    times: Sequence[float],
    values: Sequence[float],
    future: Sequence[float],
    *,
    error: float,
    exponents: np.ndarray | None = None,
) -> np.ndarray:
    """Draws of the figures (D, F) of a curve at the times `future`.

    Args:
        times, values: the points of the curve so far (n,), times above 0 and rising.
        future: times (F,).
        error: standard error of a figure.
        exponents: weight of each of `EXPONENTS` (C,), equal by default; see `weigh_exponents`.

    Example:
        >>> steps = np.arange(1, 9) * 100.0
        >>> draws = predict(steps, 0.9 - 0.8 * (steps / 100) ** -0.7, [1600], error=0.01)
        >>> bool(abs(draws.mean() - (0.9 - 0.8 * 16**-0.7)) < 0.01)
        True
    """
    x = np.asarray(times, float)
    log_weight_CS, mean_CS2, factor_CS22, sigma_S = _posterior(x, np.asarray(values, float), error)
    if exponents is not None:
        with np.errstate(divide="ignore"):
            log_weight_CS = log_weight_CS + np.log(exponents)[:, None]
    weight = np.exp(log_weight_CS - log_weight_CS.max()).ravel()
    random = np.random.default_rng(0)
    chosen = (weight.cumsum() / weight.sum()).searchsorted((np.arange(DRAWS) + 0.5) / DRAWS)
    c, s = np.unravel_index(np.minimum(chosen, weight.size - 1), log_weight_CS.shape)
    normal_D2, noise_DF = random.standard_normal((DRAWS, 2)), random.standard_normal((DRAWS, len(future)))
    v_D, b_D = (mean_CS2[c, s] + (factor_CS22[c, s] @ normal_D2[..., None])[..., 0]).T
    curve_DF = v_D[:, None] + b_D[:, None] * _basis(np.asarray(future, float) / x[-1], EXPONENTS[c])
    return values[-1] + curve_DF + sigma_S[s][:, None] * noise_DF


def weigh_exponents(curves: Sequence[tuple[Sequence[float], Sequence[float], float]]) -> np.ndarray:
    r"""The weight of each of `EXPONENTS` (C,) by earlier curves, each of times, values and standard error:

    $$ p(c) = \frac{1}{k + 1} \Bigl(\frac1C + \sum_{i=1}^k p(c \mid \text{curve}_i)\Bigr). $$
    """
    weights = [np.full(len(EXPONENTS), 1 / len(EXPONENTS))]
    for times, values, error in curves:
        log_weight_CS, *_ = _posterior(np.asarray(times, float), np.asarray(values, float), error)
        weight = np.exp(log_weight_CS - log_weight_CS.max()).sum(1)
        weights.append(weight / weight.sum())
    return np.mean(weights, axis=0)


def _basis(ratio: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The regressor of b for x / x_n (n,) and exponents (C,): (C, n)."""
    return (1 - ratio ** -c[:, None]) / c[:, None]


def _posterior(x: np.ndarray, y: np.ndarray, error: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log weights (C, S); mean (C, S, 2) and Cholesky factor of the covariance of v - y_n and b; noises (S,)."""
    residual = y - y[-1]
    sigma_S = max(error, 1e-3 * float(np.ptp(y)), 1e-9) * NOISES
    precision = (WIDTH * (float(np.ptp(y)) + sigma_S[-1])) ** -2.0
    phi_C2n = np.stack([np.ones((len(EXPONENTS), len(x))), _basis(x / x[-1], EXPONENTS)], 1)
    gram_CS22 = (phi_C2n @ phi_C2n.swapaxes(1, 2))[:, None] / sigma_S[:, None, None] ** 2 + precision * np.eye(2)
    right_CS2 = (phi_C2n @ residual)[:, None] / sigma_S[:, None] ** 2
    covariance_CS22 = np.linalg.inv(gram_CS22)
    mean_CS2 = (covariance_CS22 @ right_CS2[..., None])[..., 0]
    fit_CS = residual @ residual / sigma_S**2 - (mean_CS2 * right_CS2).sum(-1)
    log_weight_CS = -len(x) * np.log(sigma_S) - 0.5 * np.log(np.linalg.det(gram_CS22)) - 0.5 * fit_CS
    return log_weight_CS, mean_CS2, np.linalg.cholesky(covariance_CS22), sigma_S
