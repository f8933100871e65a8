"""Errors in numbers over the queries of all tasks together: rmse and R².

Shape legend: n examples, d dimensions of a target, T tasks, U units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kshot.conversion import to_numpy
from kshot.evaluation.by_class import ratio
from kshot.evaluation.intervals import Interval
from kshot.evaluation.units import Units
from kshot.objectives import Objective
from kshot.objectives.numbers import as_numbers
from kshot.types import Batch, Tree


class Pooled(NamedTuple):
    r"""Errors of a target over the queries of all tasks together, in the unit of the metric mse.

    $$ \text{rmse} = \sqrt{\tfrac1N \textstyle\sum_i (\hat y_i - y_i)^2}, \qquad
       R^2 = 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}, \qquad
       R^2_\text{within} = 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y_{u(i)})^2} $$

    with $\bar y$ the mean of all queries, and $\bar y_u$ that of the queries of unit $u$ (of a task without units). A
    learner that predicts each unit's mean exactly has $R^2_\text{within} = 0$, and may have a high $R^2$ all the same
    where units differ. Neither is a mean over tasks: the R² of a few queries is far from that of many. Targets of
    several dimensions have a mean in each, and their sums are added.

    Intervals are of the logarithm of rmse and of 1 - R², so that R² does not exceed 1.

    Attributes:
        target: name of the target, if there are several.
        r2, r2_within: None if the queries, or those of each unit, do not differ.
    """

    target: str
    rmse: Interval
    r2: Interval | None
    r2_within: Interval | None


class PooledMeter:
    """Accumulates the predictions of one task after another; `result` gives the errors over all.

    Example:
        >>> from kshot.objectives import mse
        >>> meter = PooledMeter(mse)
        >>> meter.add(torch.tensor([[1.0], [2.0]]), Batch.of(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])))
        >>> meter.add(torch.tensor([[6.0], [6.0]]), Batch.of(torch.zeros(2, 1), torch.tensor([[5.0], [7.0]])))
        >>> (pooled,) = meter.result()
        >>> round(pooled.rmse.mean, 3), pooled.r2.mean, pooled.r2_within.mean
        (0.866, 0.85, 0.25)
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._sums: dict[str, list[np.ndarray]] = {}
        """Target -> of each task (4, d): sums of the weights, targets, their squares, and the squared errors."""

    def add(self, prediction: Tree, query: Batch) -> None:
        """Add the prediction for a task's query set; those that are no numbers are ignored."""
        weight_n = to_numpy(query.weight).astype(float)[:, None]
        for target, (predicted, truth) in as_numbers(self.objective, prediction, query).items():
            guess, true = (to_numpy(values.flatten(1)).astype(float) for values in (predicted, truth))
            true, guess = true[weight_n[:, 0] > 0], guess[weight_n[:, 0] > 0]
            weight = weight_n[weight_n > 0][:, None]
            terms = [np.ones_like(true), true, true**2, (guess - true) ** 2]
            self._sums.setdefault(target, []).append(np.stack([(weight * each).sum(0) for each in terms]))

    def result(self, units: Units | None = None) -> list[Pooled]:
        """The errors of each target, with intervals over `units` of tasks; empty if there are no numbers."""
        return [_pooled(target, np.stack(sums), units) for target, sums in self._sums.items()]


def _pooled(target: str, sums_T4d: np.ndarray, units: Units | None) -> Pooled:
    one = units is not None and units.numbers.ndim == 1
    unit_T = np.unique(units.numbers, return_inverse=True)[1] if one and units else np.arange(len(sums_T4d))
    count_T, error_T = sums_T4d[:, 0].sum(1), sums_T4d[:, 3].sum(1)
    rmse = _positive(error_T, count_T, units, power=0.5)
    of_units = np.zeros((unit_T.max() + 1, *sums_T4d.shape[1:]))
    np.add.at(of_units, unit_T, sums_T4d)
    # deviations of each task from the mean of all, and from that of its unit
    figures = [
        _explained(error_T, _deviations(sums_T4d, means), sums_T4d[:, 2].sum(), units)
        for means in (
            sums_T4d[:, 1].sum(0) / sums_T4d[:, 0].sum(0),
            (of_units[:, 1] / np.maximum(of_units[:, 0], 1e-300))[unit_T],
        )
    ]
    return Pooled(target, rmse, *figures)


def _deviations(sums_T4d: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The sum (T,) of the squared deviations of the targets of each task from means (d,) or (T, d)."""
    count, total, squares = sums_T4d[:, 0], sums_T4d[:, 1], sums_T4d[:, 2]
    return np.maximum(squares - 2 * means * total + count * means**2, 0.0).sum(1)


def _explained(error_T: np.ndarray, deviation_T: np.ndarray, size: float, units: Units | None) -> Interval | None:
    """1 minus the ratio of the errors to the deviations; None if there are none beyond rounding."""
    if not deviation_T.sum() > 1e-10 * size:
        return None
    left = _positive(error_T, deviation_T, units)
    return left._replace(mean=1 - left.mean, shift=-left.shift)


def _positive(above_T: np.ndarray, below_T: np.ndarray, units: Units | None, power: float = 1.0) -> Interval:
    """A power of the ratio of two sums over tasks; its interval is the logarithm's, so that no end is negative."""
    found = ratio(above_T, below_T, units)
    if not found.mean > 0 or not math.isfinite(found.mean):
        return found
    # that of the logarithm by the delta method: all deviations are divided by the ratio
    scaled = ratio(above_T / found.mean, below_T, units)
    low, high = (math.exp(power * (math.log(found.mean) + end - 1)) for end in (scaled.low, scaled.high))
    mean = found.mean**power
    return found._replace(mean=mean, ci95=(high - low) / 2, shift=(high + low) / 2 - mean)
