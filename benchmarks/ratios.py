"""The geometric mean of ratios with its 95 % interval, by the t distribution of their logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def geometric_mean(ratios: Sequence[float]) -> str:
    """The mean and its interval as text; the interval is missing for fewer than two ratios."""
    logs = np.log(ratios)
    mean = logs.mean()
    if len(logs) < 2:
        return f"{math.exp(mean):.3f}"
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return f"{math.exp(mean):.3f} ({math.exp(mean - half):.3f} to {math.exp(mean + half):.3f})"
