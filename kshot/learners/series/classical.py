r"""Classical forecasts of many series at once: naive, drift, seasonal means, exponential smoothing, Theta.

Each takes the past (R, P), of which the last values of each row are known, and gives the next H values, (R, H). None
fails: where a method has too little past, it forecasts the last value.

Shape legend: R rows, P steps of the past, H steps ahead, m the season, G settings of parameters, B steps of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.learners.series.history import Past

Z90 = 1.645
"""Quantile of the normal distribution for the test of a season, which the M4 competition took at 90 %."""
BLOCK = 32


def last_value(past: Past, horizon: int) -> Tensor:
    r"""$\hat y_{T+h} = y_T$."""
    return past.values[:, -1:].expand(-1, horizon)


def seasonal_naive(past: Past, horizon: int, season: int) -> Tensor:
    r"""$\hat y_{T+h} = y_{T+h-m}$, repeated beyond one season; the last value if less than a season is known."""
    if past.values.shape[1] < season:
        return last_value(past, horizon)
    repeated = past.values[:, -season:][:, torch.arange(horizon, device=past.values.device) % season]
    return torch.where((past.num_known >= season)[:, None], repeated, last_value(past, horizon))


def drift(past: Past, horizon: int) -> Tensor:
    r"""$\hat y_{T+h} = y_T + h (y_T - y_1) / (T - 1)$, the line through the first and the last value."""
    first = torch.gather(past.values, 1, _first(past)[:, None])[:, 0]
    slope = (past.values[:, -1] - first) / (past.num_known - 1).clamp_min(1)
    return past.values[:, -1:] + slope[:, None] * _ahead(past, horizon)


def seasonal_mean(past: Past, horizon: int, season: int, seasons: int) -> Tensor:
    """The mean of the last `seasons` seasons at each phase; the seasonal naive forecast if fewer than two are known."""
    if past.values.shape[1] < 2 * season:
        return seasonal_naive(past, horizon, season)
    values, known = (_by_phase(each, season)[:, -seasons:] for each in past)
    mean_Rm = (values * known).sum(1) / known.sum(1).clamp_min(1)
    repeated = mean_Rm[:, torch.arange(horizon, device=values.device) % season]
    return torch.where((past.num_known >= 2 * season)[:, None], repeated, seasonal_naive(past, horizon, season))


class Seasonal(NamedTuple):
    """A past without its season: the adjusted past, and the season's part of the forecasts (R, H)."""

    adjusted: Past
    ahead: Tensor


def adjust(past: Past, horizon: int, season: int, *, test: bool = True) -> Seasonal:
    r"""Classical additive decomposition: subtract $s_{t \bmod m}$, the means at each phase of $y_t - \text{trend}_t$.

    The trend is the centred moving average over a season (2 × m for an even one), and the means sum to 0. A row without
    a season, by `is_seasonal`, or with fewer than two seasons, is left as it is.
    """
    values, known = past
    even = season % 2 == 0
    kernel = values.new_ones(season + even) / season
    if even:
        kernel[0] = kernel[-1] = 0.5 / season
    half, steps = len(kernel) // 2, values.shape[1]
    if season < 2 or steps < 2 * season:
        return Seasonal(past, values.new_zeros(len(values), horizon))
    trend, whole = (F.conv1d(each[:, None], kernel[None, None])[:, 0] for each in past)
    inside = F.pad((whole > 1 - 1e-4).to(values.dtype), (half, half))
    rest, seen = (_by_phase(each, season) for each in ((values - F.pad(trend, (half, half))) * inside, inside))
    index_Rm = rest.sum(1) / seen.sum(1).clamp_min(1)
    index_Rm = index_Rm - index_Rm.mean(1, keepdim=True)
    counts = past.num_known >= 2 * season
    index_Rm = index_Rm * (counts & is_seasonal(past, season) if test else counts)[:, None]
    phase = (torch.arange(steps, device=values.device) - steps) % season
    ahead = index_Rm[:, torch.arange(horizon, device=values.device) % season]
    return Seasonal(Past((values - index_Rm[:, phase]) * known, known), ahead)


def autocorrelations(past: Past, lags: int) -> Tensor:
    """Autocorrelations of each row at lags 0 to `lags`, (R, lags + 1); 0 for a constant row."""
    values, known = past
    mean = (values * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)
    centred = (values - mean) * known
    lagged = F.pad(centred, (lags, 0)).unfold(1, centred.shape[1], 1)  # row k: lag lags - k
    covariance = (lagged * centred[:, None]).sum(-1).flip(1)
    scale = (values * values * known).sum(1, keepdim=True)
    varies = covariance[:, :1] > 1e-10 * scale
    return torch.where(varies, covariance / torch.where(varies, covariance[:, :1], 1.0), 0.0)


def is_seasonal(past: Past, season: int) -> Tensor:
    r"""Whether each row (R,) has a season: $\lvert r_m \rvert > 1.645 \sqrt{(1 + 2 \sum_{k<m} r_k^2) / T}$, T ≥ 3 m.

    References:
        Makridakis, Spiliotis, Assimakopoulos: The M4 Competition, International Journal of Forecasting 36, 2020; the
        test of its benchmarks' code.
    """
    count = past.num_known
    if past.values.shape[1] <= season or season < 2:
        return torch.zeros_like(count, dtype=torch.bool)
    correlation = autocorrelations(past, season)
    limit = Z90 * ((1 + 2 * correlation[:, 1:season].square().sum(1)) / count.clamp_min(1)).sqrt()
    return (correlation[:, season].abs() > limit) & (count >= 3 * season)


class Smoothed(NamedTuple):
    """Sums of squared one-step errors (R, G), the last level and slope (R, G)."""

    errors: Tensor
    level: Tensor
    slope: Tensor


def smooth(past: Past, alpha: Tensor, beta: Tensor, phi: Tensor) -> Smoothed:
    r"""Exponential smoothing with a damped trend under each of G settings, started at the first value without a trend.

    $$ \hat y_t = \ell_{t-1} + \phi b_{t-1}, \quad \ell_t = \hat y_t + \alpha (y_t - \hat y_t), \quad
       b_t = \phi b_{t-1} + \alpha \beta (y_t - \hat y_t) $$

    The recursion is linear in the state, and is computed by blocks of steps: by powers of its 2 × 2 matrix within a
    block, and in a loop over blocks. Since it moves with the level of the series, the first value is subtracted, and
    the state starts at 0.

    Args:
        alpha, beta, phi: (G,); beta 0 is simple exponential smoothing.
    """
    first_R1 = torch.gather(past.values, 1, _first(past)[:, None])
    values, known = past
    values, known = (F.pad(each, (-known.shape[1] % BLOCK, 0)) for each in ((values - first_R1) * known, known))
    gain_G2, ahead_G2 = torch.stack([alpha, alpha * beta], 1), torch.stack([torch.ones_like(phi), phi], 1)
    moved_G22 = torch.stack([ahead_G2, torch.stack([0 * phi, phi], 1)], 1)
    matrix_G22 = moved_G22 - gain_G2[:, :, None] * ahead_G2[:, None]
    powers = [torch.eye(2, dtype=values.dtype, device=values.device).expand_as(matrix_G22)]
    for _ in range(BLOCK):
        powers.append(matrix_G22 @ powers[-1])
    power_GB22 = torch.stack(powers, 1)
    response_GB2 = (power_GB22[:, :-1] @ gain_G2[:, None, :, None])[..., 0]  # the state k steps after a value
    lag = torch.arange(BLOCK, device=values.device)
    lag = lag[:, None] - lag - 1
    seen_GB = (response_GB2 * ahead_G2[:, None]).sum(-1)
    from_values = torch.where(lag >= 0, seen_GB[:, lag.clamp_min(0)], 0.0)  # (G, B, B), step by earlier step
    from_state = (ahead_G2[:, None, None] @ power_GB22[:, :-1])[:, :, 0]  # (G, B, 2)
    to_state, kept = response_GB2.flip(1), power_GB22[:, -1]
    state = values.new_zeros(len(values), len(alpha), 2)
    errors = values.new_zeros(len(values), len(alpha))
    for start in range(0, values.shape[1], BLOCK):
        y_RB, known_RB = (each[:, start : start + BLOCK] for each in (values, known))
        predicted_RGB = torch.einsum("rs,gts->rgt", y_RB, from_values) + torch.einsum("rgj,gtj->rgt", state, from_state)
        errors = errors + ((y_RB[:, None] - predicted_RGB) * known_RB[:, None]).square().sum(-1)
        state = torch.einsum("rs,gsk->rgk", y_RB, to_state) + torch.einsum("rgj,gkj->rgk", state, kept)
    return Smoothed(errors, state[..., 0] + first_R1, state[..., 1])


SIMPLE = tuple(round(0.02 + 0.07 * k, 2) for k in range(15))  # 0.02 to 1.00
DAMPED = [(a, b, p) for a in (0.1, 0.3, 0.6, 0.9) for b in (0.1, 0.4) for p in (0.8, 0.9, 0.98)]


def simple_smoothing(past: Past, horizon: int) -> Tensor:
    """Simple exponential smoothing, by the alpha of `SIMPLE` of least squared one-step errors."""
    alpha = torch.tensor(SIMPLE, dtype=past.values.dtype, device=past.values.device)
    return _best(smooth(past, alpha, 0 * alpha, 0 * alpha + 1), 0 * alpha + 1, horizon)


def damped_smoothing(past: Past, horizon: int) -> Tensor:
    """Exponential smoothing with a damped trend, by the setting of `DAMPED` of least squared one-step errors."""
    alpha, beta, phi = torch.tensor(DAMPED, dtype=past.values.dtype, device=past.values.device).T
    return _best(smooth(past, alpha, beta, phi), phi, horizon)


def theta(past: Past, horizon: int) -> Tensor:
    r"""The Theta method, for a past without season: the mean of the line through the past, and of a smoothed curve.

    $$ \hat y_{T+h} = \tfrac12 (a + b (T + h)) + \tfrac12 \, \mathrm{SES}(2 y_t - a - b t) $$

    with the least-squares line $a + b t$.

    References:
        Assimakopoulos, Nikolopoulos: The theta model, International Journal of Forecasting 16, 2000.
    """
    values, known = past
    time = torch.arange(1 - values.shape[1], 1, device=values.device, dtype=values.dtype)
    level, slope = line(past)
    straight = (level[:, None] + slope[:, None] * time) * known
    curve = simple_smoothing(Past(2 * values - straight, known), horizon)
    return 0.5 * (level[:, None] + slope[:, None] * _ahead(past, horizon)) + 0.5 * curve


def line(past: Past) -> tuple[Tensor, Tensor]:
    """Least-squares line through each row: its value at the last step, and its slope, (R,) each."""
    values, known = past
    count = known.sum(1).clamp_min(1)
    time = torch.arange(1 - values.shape[1], 1, device=values.device, dtype=values.dtype)
    mean_time, mean = (known * time).sum(1) / count, (values * known).sum(1) / count
    centred = (time - mean_time[:, None]) * known
    slope = (centred * values).sum(1) / centred.square().sum(1).clamp_min(0.5)
    return mean - slope * mean_time, slope


def _best(smoothed: Smoothed, phi: Tensor, horizon: int) -> Tensor:
    """Forecasts of the setting with the least errors: the level, and slopes that are damped."""
    best = smoothed.errors.argmin(1, keepdim=True)
    level, slope = (torch.gather(each, 1, best) for each in (smoothed.level, smoothed.slope))
    powers = torch.cumsum(phi[best] ** torch.arange(1, horizon + 1, device=phi.device, dtype=phi.dtype), 1)
    return level + slope * powers


def _by_phase(values: Tensor, season: int) -> Tensor:
    """Rows (R, P) cut into seasons (R, seasons, m), the last one whole; zeros are added before the first."""
    padded = F.pad(values, (-values.shape[1] % season, 0))
    return padded.reshape(len(values), -1, season)


def _first(past: Past) -> Tensor:
    """Position of the first known value of each row, (R,)."""
    return (past.known.shape[1] - past.num_known).long().clamp_max(past.known.shape[1] - 1)


def _ahead(past: Past, horizon: int) -> Tensor:
    return torch.arange(1, horizon + 1, device=past.values.device, dtype=past.values.dtype)
