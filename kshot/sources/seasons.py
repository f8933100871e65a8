"""The season of series: the period that the steps of their times suggest, or the first peak of the autocorrelation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HOUR, DAY, YEAR = 3600, 86400, 365.2425 * 86400  # seconds
MAX_SERIES, MAX_VALUES = 200, 5000
LEAST_OF_CALENDAR, LEAST_OF_SEARCH, LEAST_RISE = 0.1, 0.3, 0.2
"""Autocorrelation of the changes from which a season counts: one that the calendar suggests, and any other, which must
also stand out from the lowest value before it."""


def find_season(series: Sequence[np.ndarray], longest: int, step: float | None = None) -> int:
    r"""The number of steps of the season that series have in common, 1 for none.

    It is looked for in the mean autocorrelation $\bar r_k$ of the changes $x_t - x_{t-1}$, in which trends do not show.
    A period of the calendar (see `calendar_seasons`) is a season if $\bar r_k \geq 0.1$ and no less than at the lags
    beside it; otherwise the season is the first lag k ≥ 2 with a peak $\bar r_k \geq 0.3$, 0.2 above the
    lowest value before it, of at least 0.9 of the highest such peak.

    Args:
        series: values of each series in the order of time, (points,), of the training split.
        longest: largest number of steps that is a season.
        step: seconds from value to value; None if times are no dates.

    Example:
        >>> find_season([np.sin(np.arange(90) * 2 * np.pi / 7) + np.arange(90)], 20)
        7
    """
    r = _mean_autocorrelation(series[:MAX_SERIES], longest + 1)
    peaks = [k for k in range(2, len(r) - 1) if k <= longest and r[k] >= max(r[k - 1], r[k + 1])]
    for period in calendar_seasons(step) if step else ():
        if period in peaks and r[period] >= LEAST_OF_CALENDAR:
            return period
    high = [k for k in peaks if r[k] >= LEAST_OF_SEARCH and r[k] - min(r[1:k]) >= LEAST_RISE]
    return next(k for k in high if r[k] >= 0.9 * max(r[high])) if high else 1


def calendar_seasons(step: float) -> list[int]:
    """Steps of a day, a week or a year, for values that are `step` seconds apart: the shorter period first.

    Example:
        >>> [calendar_seasons(seconds) for seconds in (1800, 3600, 86400, 7 * 86400, 30.4 * 86400, 91.3 * 86400)]
        [[48, 336], [24, 168], [7], [52], [12], [4]]
    """
    if step < DAY:
        day = DAY / step
        return [round(day), round(7 * day)] if abs(day - round(day)) < 1e-3 else []
    if step == DAY:
        return [7]
    year = YEAR / step
    return [round(year)] if round(year) in (4, 12, 52) and abs(year - round(year)) < 0.05 * year else []


def _mean_autocorrelation(series: Sequence[np.ndarray], lags: int) -> np.ndarray:
    """The mean over series of the autocorrelations of their changes at lags 0 to `lags`, as far as all have them."""
    found = []
    for values in series:
        changes = np.diff(values[-MAX_VALUES:].astype(np.float64))
        changes = changes[np.isfinite(changes)]
        if len(changes) < 4:
            continue
        changes = changes - changes.mean()
        energy = np.square(changes).sum()
        if energy <= 1e-18 * np.square(values[-MAX_VALUES:]).sum():
            continue
        spectrum = np.fft.rfft(changes, 2 * len(changes))
        covariance = np.fft.irfft(spectrum * spectrum.conj())[: len(changes)]
        overlap = np.arange(len(changes), 0, -1) / len(changes)
        trusted = np.where(overlap > 0.25, covariance / overlap / energy, 0.0)
        found.append(np.pad(trusted, (0, max(0, lags + 1 - len(trusted))))[: lags + 1])
    return np.mean(found, 0) if found else np.zeros(lags + 1)
