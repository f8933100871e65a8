"""The scale of numbers: mean and standard deviation of training rows, without a value that would hide all others."""

from __future__ import annotations

import numpy as np


def extremes(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    r"""Whether each value (n,) is so extreme that it hides all others, such as a single 1e12 among prices.

    This is so if at most one in 1,000 of the values at the mask `where`, or a single one, make up 99.9 % of the sum of
    squared deviations from the median. Extreme are then all values that deviate by more than 100 times the root mean
    square $s$ of the others, which never happens by chance to distributions whose $s$ means something:

    $$ |x - \mathrm{median}| > 100 \, s $$
    """
    known = values[where]
    known = known[~np.isnan(known)]
    if len(known) < 20:
        return np.zeros(len(values), bool)
    median = np.median(known)
    squared = np.sort(np.square(known - median))
    count = max(1, len(known) // 1000)
    rest = float(squared[:-count].sum())
    if not rest or squared[-count:].sum() < 999 * rest:
        return np.zeros(len(values), bool)
    with np.errstate(invalid="ignore"):
        return np.abs(values - median) > 100 * np.sqrt(rest / (len(known) - count))


def moments(values: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the values (n,) at a mask, without missing and extreme ones; (0, 1) if none."""
    known = values[where & ~extremes(values, where)]
    known = known[~np.isnan(known)]
    if not len(known):
        return 0.0, 1.0
    mean = float(known.mean())
    std = float(np.sqrt(np.square(known - mean).mean()))
    return mean, std if std > 1e-12 * max(abs(mean), 1e-300) else 0.0
