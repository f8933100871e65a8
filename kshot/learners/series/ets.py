r"""Exponential smoothing in state-space form (ETS) with additive errors, the model of each series chosen by AICc.

Shape legend: R series, P steps of the past, H steps ahead, m the season, M models, G settings of parameters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.learners.series.classical import adjust, last_value, line
from kshot.learners.series.history import Past

FIRST_SETTINGS, ROUNDS, SETTINGS, SHRINK = 96, 4, 32, 0.4
"""The search for smoothing parameters: settings spread over their range, then rounds around the best, each closer."""
NUM_FIRST = 10
"""Values through which the line of the initial level and slope goes."""
PHI = (0.8, 0.98)


class Model(NamedTuple):
    """A form of ETS: "N", "A" or "Ad" (damped) for the trend, and whether there is a season."""

    trend: str
    seasonal: bool

    def num_parameters(self, season: int) -> int:
        """Smoothing parameters, initial states and the variance."""
        trend = {"N": 0, "A": 2, "Ad": 3}[self.trend]
        return 3 + trend + (season if self.seasonal else 0)


class States(NamedTuple):
    """Initial or final states: level and slope (R, K), and the seasonal effects by phase (m, R, K)."""

    level: Tensor
    slope: Tensor
    seasons: Tensor


def models(season: int) -> list[Model]:
    """The forms among which `ets` chooses."""
    return [Model(trend, seasonal) for seasonal in (False, True)[: 1 + (season > 1)] for trend in ("N", "A", "Ad")]


def ets(past: Past, horizon: int, season: int) -> Tensor:
    r"""Forecasts (R, H) by the form of ETS with the least AICc for each series.

    $$ \hat y_t = \ell_{t-1} + \phi b_{t-1} + s_{t-m}, \quad \ell_t = \ell_{t-1} + \phi b_{t-1} + \alpha e_t, \quad
       b_t = \phi b_{t-1} + \alpha \beta^* e_t, \quad s_t = s_{t-m} + (1 - \alpha) \gamma^* e_t $$

    with $e_t = y_t - \hat y_t$, and $\text{AICc} = T \log(\text{SSE}/T) + 2k + 2k(k+1)/(T-k-1)$.

    References:
        Hyndman, Koehler, Ord, Snyder: Forecasting with Exponential Smoothing, Springer 2008, chapters 2 to 5.

    Deviations:
        Errors are additive (for multiplicative effects take logarithms first). Initial states are the heuristic ones of
        section 2.6.1, not optimised, and smoothing parameters are searched in a fixed number of settings.
    """
    forms, count = models(season), past.num_known
    size = torch.tensor([form.num_parameters(season) for form in forms], dtype=count.dtype, device=count.device)
    sse, ahead = search(past, horizon, season, forms)
    criterion = aicc(sse, count[:, None], size, past)
    chosen = criterion.argmin(1)
    forecast = ahead[torch.arange(len(chosen), device=chosen.device), chosen]
    usable = torch.isfinite(criterion.amin(1)) & torch.isfinite(forecast).all(1)
    return torch.where(usable[:, None], forecast, last_value(past, horizon))


def search(past: Past, horizon: int, season: int, forms: list[Model]) -> tuple[Tensor, Tensor]:
    """The least sum of squared errors of each form (R, M), and its forecasts (R, M, H)."""
    unit = _first_settings(len(forms), past)
    best: tuple[Tensor, ...] = _least(*_run(past, horizon, season, forms, unit), unit)
    for stage in range(1, 1 + ROUNDS):
        unit = _around(best[2], SHRINK**stage)
        found = _least(*_run(past, horizon, season, forms, unit), unit)
        better = found[0] < best[0]
        best = (
            torch.where(better, found[0], best[0]),
            *(torch.where(better[..., None], new, old) for new, old in zip(found[1:], best[1:])),
        )
    return best[0], best[1]


def _least(sse: Tensor, ahead: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Errors (R, M), forecasts (R, M, H) and settings (R, M, 4) of the setting with the least errors."""
    least = sse.argmin(-1, keepdim=True)[..., None]
    values = [
        each.gather(2, least.expand(-1, -1, 1, each.shape[-1]))[:, :, 0] for each in (sse[..., None], ahead, unit)
    ]
    return values[0][..., 0], values[1], values[2]


def aicc(sse: Tensor, count: Tensor, size: Tensor, past: Past) -> Tensor:
    """AICc (R, M) up to a constant; infinite where a form has too many parameters, or a season too little past."""
    floor = 1e-12 * (past.values.square() * past.known).sum(1, keepdim=True) + 1e-30
    rest = count - size - 1
    criterion = count * (sse.maximum(floor) / count).log() + 2 * size + 2 * size * (size + 1) / rest.clamp_min(1)
    return torch.where(rest > 0, criterion, math.inf)


def _first_settings(num_forms: int, past: Past) -> Tensor:
    """Quasi-random settings in the unit cube, (R, M, G, 4)."""
    unit = torch.quasirandom.SobolEngine(4).draw(FIRST_SETTINGS + 1)[1:].to(past.values)
    return unit.expand(len(past.values), num_forms, -1, -1)


def _around(best: Tensor, width: float) -> Tensor:
    """Settings around the best (R, M, 4) of each series and form, within the unit cube: (R, M, G, 4)."""
    step = 2 * torch.quasirandom.SobolEngine(4).draw(SETTINGS + 1)[1:].to(best) - 1
    return (best[:, :, None] + width * step).clamp(0, 1)


def _run(past: Past, horizon: int, season: int, forms: list[Model], unit: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squared errors (R, M, G) and forecasts (R, M, G, H) under settings (R, M, G, 4) in the unit cube."""
    rows, num_forms, settings, _ = unit.shape
    trend = torch.tensor([form.trend != "N" for form in forms], device=unit.device).to(unit)[:, None]
    damped = torch.tensor([form.trend == "Ad" for form in forms], device=unit.device)[:, None]
    seasonal = torch.tensor([form.seasonal for form in forms], device=unit.device).to(unit)[:, None]
    a, b, g, p = unit.unbind(-1)
    alpha = 1e-4 + 0.9998 * a
    beta, gamma = alpha * b * trend, (1 - alpha) * g * seasonal
    phi = torch.where(damped, PHI[0] + (PHI[1] - PHI[0]) * p, 1.0)
    flat = [each.expand_as(a).reshape(rows, -1) for each in (alpha, beta, gamma, phi)]
    start = initial_states(past, season)
    gates = [each.expand(num_forms, settings).reshape(-1) for each in (trend, seasonal)]
    shape = (rows, num_forms * settings)
    seasons = start.seasons[..., None] * gates[1]
    states = States(start.level[:, 0, None].expand(shape), start.slope[:, 0, None] * gates[0], seasons)
    flat_start = start.level[:, 1, None].expand(shape)  # without a season
    states = states._replace(level=torch.where(gates[1] > 0, states.level, flat_start))
    slope = torch.where(gates[1] > 0, start.slope[:, 0, None], start.slope[:, 1, None]) * gates[0]
    sse, ahead = recursion(past, horizon, states._replace(slope=slope), *flat)
    return sse.view(rows, num_forms, settings), ahead.view(rows, num_forms, settings, horizon)


def initial_states(past: Past, season: int) -> States:
    """Level and slope before the first value, (R, 2): of the series without its season, and as it is; seasons (m, R).

    They are those of the line through the first `NUM_FIRST` values; the seasons those of the classical decomposition.
    """
    adjusted = adjust(past, season, season, test=False)
    levels, slopes = [], []
    position = past.known.cumsum(1) * past.known
    for each in (adjusted.adjusted, past):
        early = Past(each.values, each.known * (position <= NUM_FIRST))
        level, slope = line(early)
        back = past.num_known  # from the last step to the one before the first
        level = level - slope * back
        levels.append(level)
        slopes.append(slope)
    phase = (torch.arange(season, device=past.values.device) + past.values.shape[1]) % season
    seasons = torch.zeros_like(adjusted.ahead)
    seasons[:, phase] = adjusted.ahead
    return States(torch.stack(levels, 1), torch.stack(slopes, 1), seasons.T)


def recursion(
    past: Past, horizon: int, states: States, alpha: Tensor, beta: Tensor, gamma: Tensor, phi: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of squared one-step errors (R, K) and forecasts (R, K, H) under K settings for each series.

    Args:
        states: before the first known value; the seasonal effect of step t of the past is number t mod m.
        alpha, beta, gamma, phi: (R, K), those of the equations of `ets`: beta is $\\alpha \\beta^*$, gamma
            $(1 - \\alpha) \\gamma^*$.
    """
    values, known = past
    level, slope, seasons = states.level, states.slope, list(states.seasons)
    sse, m = torch.zeros_like(level), len(seasons)
    steps, first = values.shape[1], int(past.known.amax(0).argmax())
    for t in range(first, steps):
        is_known = known[:, t, None]
        moved = phi * slope
        error = (values[:, t, None] - level - moved - seasons[t % m]) * is_known
        sse = sse + error.square()
        level = level + moved * is_known + alpha * error
        slope = torch.where(is_known > 0, moved, slope) + beta * error
        seasons[t % m] = seasons[t % m] + gamma * error
    ahead, moved = [], slope
    for h in range(horizon):
        moved = phi * moved
        level = level + moved
        ahead.append(level + seasons[(steps + h) % m])
    return sse, torch.stack(ahead, -1)
