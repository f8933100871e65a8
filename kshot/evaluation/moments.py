r"""The mean of tasks with its standard error over units, and Student's and Hall's distribution of the two.

Hall corrects t for skewness: with $a$ the skewness of the mean,

$$ g(t) = t + \frac{a t^2}{3} + \frac{a^2 t^3}{27} + \frac{a}{6}, \qquad
   g^{-1}(x) = \frac{3}{a} \Bigl( \bigl(1 + a (x - \tfrac a6)\bigr)^{1/3} - 1 \Bigr) $$

Shape legend: S seeds, T tasks, U units, K units of a task.

References:
    Hall: On the removal of skewness by transformation, JRSS B 54, 1992. Liang, Zeger: Longitudinal data analysis using
    generalized linear models, Biometrika 73, 1986. Searle, Casella, McCulloch: Variance Components, Wiley 1992.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kshot.evaluation.units import Units

LEVEL = 0.05
"""Significance level: a difference is claimed if its corrected p value is below this."""

FEW = 6  # units; the skewness of fewer is not estimated


class Moments(NamedTuple):
    """Mean, squared standard error, degrees of freedom and skewness of the mean; numbers of units, and of those that
    differ from 0."""

    mean: float
    variance: float
    freedom: float
    skew: float
    num_units: int
    num_other: int


def moments_of(values: np.ndarray, units: Units | None = None) -> Moments:
    if units is not None and units.numbers.ndim == 2:
        return of_members(values, units.numbers)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # a diverged task makes the mean infinite
        mean = float(values.mean())
        errors: np.ndarray
        sizes: np.ndarray
        if units is None:
            errors, sizes, nonzero = values - mean, np.ones_like(values), values != 0
        else:
            _, unit = np.unique(units.numbers, return_inverse=True)
            errors, sizes = np.bincount(unit, values - mean), np.bincount(unit, np.ones_like(values))
            nonzero = np.bincount(unit, values != 0) > 0
        count = len(errors)
        if (values == values[0]).all():
            errors = np.zeros(count)  # without the rounding of the mean
        square = float((errors**2).sum())
        variance = count / (count - 1) * square / len(values) ** 2 if count > 1 else math.nan
        skew = float((errors**3).sum()) / square**1.5 if square > 0 and count >= FEW else 0.0
        freedom = max(min(float((sizes**2).sum() ** 2 / (sizes**4).sum()), count - 1.0), 1.0)
    return Moments(mean, variance, freedom, skew if math.isfinite(skew) else 0.0, count, int(nonzero.sum()))


def of_members(values: np.ndarray, units: np.ndarray) -> Moments:
    r"""The moments if each task has several units, such as its classes: a model of variance components.

    $$ y_t = \mu + \frac{1}{K_t} \sum_{u \in t} a_u + \epsilon_t, \qquad
       v = \sigma_a^2 \sum_u w_u^2 + \sigma^2 / T, \qquad w_u = \frac1T \sum_{t \ni u} \frac{1}{K_t} $$

    The two variances are the unbiased quadratic ones (MINQUE(0)): with $e$ the deviations from the mean, $M$ the (T, U)
    matrix of the $1 / K_t$, and $N = M^\top M - T w w^\top$, they solve

    $$ \begin{pmatrix} \mathrm{tr} N & T - 1 \\ \lVert N \rVert_F^2 & \mathrm{tr} N \end{pmatrix}
       \begin{pmatrix} \sigma_a^2 \\ \sigma^2 \end{pmatrix} =
       \begin{pmatrix} e^\top e \\ \lVert M^\top e \rVert^2 \end{pmatrix} $$

    If all tasks have the same units, their variance is not identified, and the interval is over tasks of these units.
    """
    from scipy.sparse import csr_matrix

    num_tasks, present = len(values), units >= 0
    names, column = np.unique(units[present], return_inverse=True)
    row = np.nonzero(present)[0]
    share = (1 / present.sum(1))[row]
    member = csr_matrix((share, (row, column)), (num_tasks, len(names)))
    with np.errstate(invalid="ignore", over="ignore"):
        mean = float(values.mean())
        errors = values - mean if (values != values[0]).any() else np.zeros(num_tasks)
    weight = np.asarray(member.sum(0)).ravel() / num_tasks
    gram = (member.T @ member).tocsr()
    trace = float(gram.diagonal().sum()) - num_tasks * float(weight @ weight)
    whole = float(gram.multiply(gram).sum())
    norm = whole - 2 * num_tasks * float(weight @ (gram @ weight))
    norm += (num_tasks * float(weight @ weight)) ** 2
    square, of_units = float(errors @ errors), float(np.square(member.T @ errors).sum())
    between = 0.0
    determinant = (num_tasks - 1) * norm - trace**2
    if norm > 1e-9 * whole and determinant > 0:
        between = max(((num_tasks - 1) * of_units - trace * square) / determinant, 0.0)
    within = max(square - between * trace, 0.0) / max(num_tasks - 1, 1)
    parts = between * float(weight @ weight), within / num_tasks
    variance = sum(parts) if num_tasks > 1 else math.nan
    freedoms = max(1 / float(weight @ weight) - 1, 1.0), max(num_tasks - 1.0, 1.0)
    freedom = variance**2 / sum(v**2 / f for v, f in zip(parts, freedoms)) if variance > 0 else freedoms[1]
    return Moments(mean, variance, freedom, 0.0, len(names), int((values != 0).sum()))


def with_seeds(paired: Moments, sides: Sequence[np.ndarray]) -> Moments:
    """The moments of a paired difference with the variance between the seeds of both sides added."""
    with np.errstate(invalid="ignore", over="ignore"):
        squares = [float(np.square(side - side.mean()).sum()) for side in sides]
    freedoms = [len(side) - 1 for side in sides]
    if not any(freedoms):
        return paired
    if all(freedoms):
        terms = [(square / f / len(side), float(f)) for square, f, side in zip(squares, freedoms, sides)]
    else:
        pooled = sum(squares) / sum(freedoms)
        terms = [(pooled * sum(1 / len(side) for side in sides), float(sum(freedoms)))]
    terms.append((paired.variance, paired.freedom))
    total = sum(variance for variance, _ in terms)
    freedom = 1 / sum((variance / total) ** 2 / f for variance, f in terms) if total > 0 else paired.freedom
    skew = paired.skew * (paired.variance / total) ** 1.5 if total > 0 else 0.0
    return paired._replace(variance=total, freedom=freedom, skew=skew)


def ends(moments: Moments) -> tuple[float, float]:
    """Lower and upper end of the 95 % interval; NaN if the spread is 0 or not known."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    mean, error = moments.mean, math.sqrt(moments.variance)
    if not error > 0 or not math.isfinite(mean):
        return math.nan, math.nan
    quantile = float(stdtrit(moments.freedom, 1 - LEVEL / 2))
    upper, lower = (_inverse(sign * quantile, moments.skew) for sign in (1, -1))
    return mean - error * max(upper, quantile), mean + error * max(-lower, quantile)


def p_value(moments: Moments) -> float:
    """The two-sided p value of the mean's being 0."""
    from scipy.special import stdtr

    error = math.sqrt(moments.variance)
    if not error > 0:
        return 1.0 if moments.mean == 0 else 0.0
    x, a = moments.mean / error, moments.skew
    corrected = x + a * x**2 / 3 + a**2 * x**3 / 27 + a / 6
    return float(2 * stdtr(moments.freedom, -min(abs(x), abs(corrected))))


def _inverse(x: float, skew: float) -> float:
    """The t value whose transformation by Hall is `x`."""
    if abs(skew) < 1e-6:
        return x
    return 3 / skew * (math.cbrt(1 + skew * (x - skew / 6)) - 1)
