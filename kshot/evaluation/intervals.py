"""How sure a figure is: intervals over tasks and over seeds, and differences between figures on the same tasks.

Shape legend: S seeds, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
"""A difference is claimed where its p value, corrected for the number of comparisons, is below this."""


class Interval(NamedTuple):
    """A mean over tasks and the half-width of its 95 % confidence interval."""

    mean: float
    ci95: float
    num_tasks: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.ci95:.4f} ({self.num_tasks} tasks)"


class OverSeeds(NamedTuple):
    """A figure of several trainings that differ in their seed only, all scored on the same tasks.

    Attributes:
        mean: over seeds, of each one's mean over tasks.
        ci95: half-width of the interval over seeds: where the mean would be for other seeds, on these tasks. NaN for
            a single seed.
        num_seeds: how many.
        ci95_tasks: half-width of the interval over tasks of one typical seed: where its figure would be on other tasks.
        num_tasks: how many, the same for each seed.
    """

    mean: float
    ci95: float
    num_seeds: int
    ci95_tasks: float
    num_tasks: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.4f} ± {self.ci95:.4f} ({self.num_seeds} seeds), ± {self.ci95_tasks:.4f} within a seed "
            f"({self.num_tasks} tasks)"
        )


class Difference(NamedTuple):
    """A mean difference between two figures on the same tasks.

    Attributes:
        mean: ours minus theirs.
        ci95: half-width of its 95 % confidence interval.
        num_tasks: how many tasks both were scored on.
        p: two-sided p value of there being no difference.
        num_seeds: of ours and of theirs. With one of each the interval is over tasks alone, and says nothing about what
            another training would give.
    """

    mean: float
    ci95: float
    num_tasks: int
    p: float
    num_seeds: tuple[int, int] = (1, 1)


def interval(values: Sequence[float], subjects: np.ndarray | None = None) -> Interval:
    r"""Mean and $t_{0.975, n-1} \cdot s / \sqrt n$ over tasks; the half-width is NaN for a single task.

    Where some tasks are of the same subject, such as a user who comes again, their errors go together. With the sum
    $e_u$ of what the $T_u$ tasks of subject $u$ are off the mean, the squared standard error is then

    $$ v = \frac{U}{U - 1} \sum_u \frac{e_u^2}{T^2} $$

    with $U - 1$ degrees of freedom, which for one task each is $s^2 / n$.

    Args:
        values: (T,) of tasks.
        subjects: (T,) whose each task is, a number from 0; None for one each.

    Example:
        >>> interval([0.0, 1.0, 0.0, 1.0])
        Interval(mean=0.5, ci95=0.918..., num_tasks=4)
        >>> interval([0.0, 0.0, 1.0, 1.0], np.array([0, 0, 1, 1]))  # two users, seen twice
        Interval(mean=0.5, ci95=6.35..., num_tasks=4)

    References:
        Liang, Zeger: Longitudinal data analysis using generalized linear models, Biometrika 73, 1986: the sandwich of a
        mean; with the correction for few clusters.
    """
    mean, variance, freedom = _moments(np.asarray(values, float), subjects)
    return Interval(mean, _half_width([variance], [freedom]), len(values))


def over_seeds(figures: Sequence[Interval]) -> OverSeeds:
    r"""One figure of several seeds, from each seed's own: its mean and both of its intervals.

    With $m_s$, $h_s$ the mean and half-width of seed $s$: $\bar m \pm t_{0.975, S-1} \cdot s_m / \sqrt S$ over seeds,
    and $\sqrt{\overline{h_s^2}}$ over tasks. The two are kept apart: more tasks shrink the one, more seeds the other.

    Raises:
        ValueError: no figures, or numbers of tasks that differ.

    Example:
        >>> print(over_seeds([Interval(0.97, 0.01, 600), Interval(0.99, 0.01, 600), Interval(0.98, 0.01, 600)]))
        0.9800 ± 0.0248 (3 seeds), ± 0.0100 within a seed (600 tasks)
    """
    tasks = {figure.num_tasks for figure in figures}
    if len(tasks) != 1:
        raise ValueError(f"seeds are pooled over the same tasks, got figures over {sorted(tasks) or 'no'} tasks")
    mean, ci95, seeds = interval([figure.mean for figure in figures])
    within = math.sqrt(sum(figure.ci95**2 for figure in figures) / seeds)
    return OverSeeds(mean, ci95, seeds, within, tasks.pop())


def difference(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], subjects: np.ndarray | None = None
) -> Difference:
    r"""Mean difference of scores on the same tasks, paired over tasks; seeds are not paired.

    With $d_t$ the difference on task $t$ of the scores' means over seeds, and $a_s$, $b_s$ the means over tasks of each
    seed, the squared standard error is

    $$ v = \frac{s_d^2}{T} + \frac{s_a^2}{S_a} + \frac{s_b^2}{S_b}, $$

    a term of seeds being left out where there is one seed; the degrees of freedom are Welch's and Satterthwaite's. With
    one seed each it is the paired t-test.

    Args:
        ours: scores (S, T) of each seed on each task.
        theirs: the same of the other, as many tasks; the number of seeds may be another.
        subjects: (T,) as in `interval`, which then has the first term.

    Raises:
        ValueError: numbers of tasks that differ, or none.

    Example:
        >>> difference([[0.9, 0.7, 0.8]], [[0.8, 0.6, 0.6]])
        Difference(mean=0.133..., ci95=0.143..., num_tasks=3, p=0.057..., num_seeds=(1, 1))
    """
    sides = [np.asarray(side, float) for side in (ours, theirs)]
    if any(side.ndim != 2 or side.size == 0 for side in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(
            f"both must be (seeds, tasks) with the same number of tasks, got {sides[0].shape} and {sides[1].shape}"
        )
    mean, variance, freedom = _moments(sides[0].mean(0) - sides[1].mean(0), subjects)
    variances, freedoms = [variance], [freedom]
    for side in sides:
        if len(side) > 1:
            _, variance, freedom = _moments(side.mean(1))
            variances.append(variance)
            freedoms.append(freedom)
    half = _half_width(variances, freedoms)
    p = _p_value(mean, variances, freedoms)
    return Difference(mean, half, sides[0].shape[1], p, (len(sides[0]), len(sides[1])))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""p values adjusted for being several: the i-th smallest of m becomes $\max_{j \le i} (m - j + 1) \, p_{(j)}$.

    Holm's step-down correction: whatever is below 0.05 thereafter, the chance of even one false claim is below 0.05. A
    p value that is NaN stays so, and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    References:
        Holm: A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, floor = list(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p))
        adjusted[place] = floor
    return adjusted


def _moments(values: np.ndarray, subjects: np.ndarray | None = None) -> tuple[float, float, int]:
    """Mean, squared standard error of the mean, and degrees of freedom."""
    count = len(values)
    with np.errstate(invalid="ignore", over="ignore"):  # a task that diverged makes the figure infinite, which is said
        if subjects is not None:
            _, place = np.unique(subjects, return_inverse=True)
            several = int(place.max()) + 1
            off = np.bincount(place, values - values.mean())
            variance = several / (several - 1) * float((off**2).sum()) / count**2 if several > 1 else math.nan
            return float(values.mean()), variance, max(several - 1, 1)
        variance = float(np.var(values, ddof=1)) / count if count > 1 else math.nan
        return float(values.mean()), variance, max(count - 1, 1)


def _freedom(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """Satterthwaite's degrees of freedom of a sum of squared standard errors."""
    total = sum(variances)
    if not total > 0:
        return float(max(freedoms))
    return 1 / sum((v / total) ** 2 / f for v, f in zip(variances, freedoms))


def _half_width(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, _freedom(variances, freedoms))) * math.sqrt(sum(variances))


def _p_value(mean: float, variances: Sequence[float], freedoms: Sequence[int]) -> float:
    from scipy.stats import t

    error = math.sqrt(sum(variances))
    if math.isnan(mean) or math.isnan(error):
        return math.nan
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / error, _freedom(variances, freedoms)))
