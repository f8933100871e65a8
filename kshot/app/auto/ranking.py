"""What experience expects of plans on a data set: a weighted mean of what they achieved on similar ones.

And what is expected after a measurement on a few validation tasks, which says little where these are of few groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.app.auto.descriptors import WITHOUT_UNIT, error_of, value_of
from kshot.deciding.trial import Trial
from kshot.evaluation.target import Target

Descriptors = Mapping[str, float | str]

SAME = ("kind", "inputs", "dimensions", "forecasts")
"""Descriptors of which data sets must have the same values to be compared."""
PRIOR = 1.0
"""The weight of no improvement over the best simple method, in data sets as similar as can be."""
SPREAD = 0.3
"""The standard deviation of gains over data sets, as if it had been seen on `PRIOR` data sets."""
PAIRED = 0.45
"""The standard error of a difference on the same tasks over that of a figure, for a correlation of 0.9 between them."""
WORST, BEST = -1.0, 2.0
"""Bounds of a gain, so that one data set does not decide."""


@dataclass(frozen=True)
class Expectation:
    """What is expected of a plan on a data set.

    Attributes:
        gain: by how much its log error is below that of the best simple method.
        weight: the sum of the similarities of the data sets on which it was tried; 0 if there are none.
        error: the expected error on the scale of `error_of`; None if the best simple method's is not known.
        spread: the standard deviation of its gains over data sets.
    """

    gain: float
    weight: float
    error: float | None
    spread: float = SPREAD

    def value(self, target: Target) -> float | None:
        """The expected value of the target's metric; None if it is not known."""
        return None if self.error is None else value_of(self.error, target)


UNKNOWN = Expectation(0.0, 0.0, None)
"""Of a plan without any trial."""


def expect(plans: Sequence[str], descriptors: Descriptors, trials: Sequence[Trial]) -> dict[str, Expectation]:
    r"""The expectation of each plan on a data set with these descriptors.

    The gain of a plan on a data set is $g_i = \log e_\text{simple} - \log e_\text{plan}$, with the best
    validation error that it reached. Expected is the mean over data sets, shrunk to none:

    $$ \hat g = \frac{\sum_i w_i g_i}{\lambda + \sum_i w_i}, \qquad w_i = \exp(-\tfrac12 d_i^2), $$

    where $d_i^2$ is the mean squared difference of the descriptors, each divided by its standard deviation over the
    data sets of the same kind, and $\lambda$ is `PRIOR`.
    """
    similar = [trial for trial in trials if all(trial.descriptors.get(key) == descriptors.get(key) for key in SAME)]
    weights = _similarities(descriptors, [trial.descriptors for trial in similar])
    baseline = descriptors.get("simple_error")
    expected = {}
    for plan in plans:
        gains = [(weight, gain_of(trial)) for weight, trial in zip(weights, similar) if trial.plan.get("name") == plan]
        gains = [(weight, gain) for weight, gain in gains if math.isfinite(gain)]
        total = sum(weight for weight, _ in gains)
        gain = sum(weight * gain for weight, gain in gains) / (PRIOR + total)
        error = baseline - gain if isinstance(baseline, float) and total else None
        squares = PRIOR * SPREAD**2 + sum(weight * (each - gain) ** 2 for weight, each in gains)
        expected[plan] = Expectation(gain, total, error, math.sqrt(squares / (PRIOR + total)))
    return expected


def gain_after(expected: Expectation, measured: float, noise: float) -> float:
    r"""The gain of a plan that is expected after it was measured, by Bayes' theorem for normal distributions:

    $$ \frac{\tau^2 g + s^2 \hat g}{\tau^2 + s^2} $$

    with the spread $\tau$ and the gain $\hat g$ of the expectation, the measured gain $g$, and its standard error $s$;
    the expected gain if that is infinite.

    Args:
        noise: standard error of the log error of the plan, of which that of the gain, as both are measured on the same
            tasks, is taken to be the part `PAIRED`.

    Example:
        >>> nothing_known = Expectation(0.0, 0.0, None, spread=0.3)
        >>> round(gain_after(nothing_known, measured=0.2, noise=0.0), 3)
        0.2
        >>> round(gain_after(nothing_known, measured=0.2, noise=0.3 / PAIRED), 3)
        0.1
    """
    if math.isinf(noise):
        return expected.gain
    between, within = expected.spread**2, (PAIRED * noise) ** 2
    return (between * measured + within * expected.gain) / (between + within)


def gain_of(trial: Trial) -> float:
    """By how much the log error of a trial is below that of the best simple method on its data set."""
    target = Target(str(trial.descriptors["metric"]), bool(trial.descriptors["higher_is_better"]), 0.0)
    errors = [error_of(figure.value, target) for figure in trial.figures if figure.value is not None]
    if trial.baseline is None:
        return math.nan
    if not errors:
        return WORST
    return float(np.clip(error_of(trial.baseline, target) - min(errors), WORST, BEST))


def _similarities(descriptors: Descriptors, others: Sequence[Descriptors]) -> np.ndarray:
    """A weight in (0, 1] for each of the other data sets, by the descriptors that do not depend on a unit."""
    names = sorted(name for name, value in descriptors.items() if isinstance(value, float))
    if descriptors.get("metric") not in WITHOUT_UNIT:
        names = [name for name in names if name != "simple_error"]
    if not others or not names:
        return np.ones(len(others))
    rows = np.array([[float(each.get(name, math.nan)) for name in names] for each in (descriptors, *others)])
    with np.errstate(invalid="ignore"):
        spread = np.nanstd(rows, axis=0)
    differences = (rows[1:] - rows[0]) / np.where(spread > 0, spread, 1.0)
    known = np.isfinite(differences)
    squares = np.where(known, differences, 0.0) ** 2
    return np.exp(-0.5 * squares.sum(1) / np.maximum(known.sum(1), 1))
