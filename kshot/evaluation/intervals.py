"""Confidence intervals over tasks and over seeds, and paired differences.

Shape legend: S seeds, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
"""Significance level: a difference is claimed if its corrected p value is below this."""


class Interval(NamedTuple):
    """A mean over tasks and the half-width of its 95 % confidence interval."""

    mean: float
    ci95: float
    num_tasks: int

    @property
    def half_width(self) -> float:
        """`ci95`, or 0 if it is not finite."""
        return self.ci95 if math.isfinite(self.ci95) else 0.0

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.ci95:.4f} ({self.num_tasks} tasks)"


class OverSeeds(NamedTuple):
    """The figure of several trainings that differ only in their seed, evaluated on the same tasks.

    Attributes:
        mean: mean over seeds of each seed's mean over tasks.
        ci95: half-width of the interval over seeds (other seeds, same tasks). NaN for a single seed.
        num_seeds: number of seeds.
        ci95_tasks: half-width of the interval over tasks of a typical seed (other tasks, same seed).
        num_tasks: number of tasks, the same for each seed.
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
        mean, ci95: mean of ours minus theirs, and the half-width of its 95 % confidence interval.
        num_tasks: number of tasks that both were evaluated on.
        p: two-sided p value of the hypothesis that there is no difference.
        num_seeds: number of seeds of ours and of theirs. With one seed each the interval is over tasks only and does
            not cover the variation between trainings.
    """

    mean: float
    ci95: float
    num_tasks: int
    p: float
    num_seeds: tuple[int, int] = (1, 1)


def interval(values: Sequence[float], subjects: np.ndarray | None = None) -> Interval:
    r"""Mean and $t_{0.975, n-1} \cdot s / \sqrt n$ over tasks; the half-width is NaN for a single task.

    Tasks of the same subject, such as a user with several tasks, have correlated errors. With $e_u$ the sum of the
    deviations from the mean over the tasks of subject $u$, the squared standard error is then

    $$ v = \frac{U}{U - 1} \sum_u \frac{e_u^2}{T^2} $$

    with $U - 1$ degrees of freedom, which equals $s^2 / n$ if each subject has one task.

    Args:
        values: (T,) figure of each task.
        subjects: (T,) subject of each task, as an integer; None if each task has its own.

    Example:
        >>> interval([0.0, 1.0, 0.0, 1.0])
        Interval(mean=0.5, ci95=0.918..., num_tasks=4)
        >>> interval([0.0, 0.0, 1.0, 1.0], np.array([0, 0, 1, 1]))  # two users with two tasks each
        Interval(mean=0.5, ci95=6.35..., num_tasks=4)

    References:
        Liang, Zeger: Longitudinal data analysis using generalized linear models, Biometrika 73, 1986: the sandwich
        estimator of a mean, with the correction for few clusters.
    """
    mean, variance, freedom = _moments(np.asarray(values, float), subjects)
    return Interval(mean, _t_test(mean, [variance], [freedom])[0], len(values))


def over_seeds(figures: Sequence[Interval]) -> OverSeeds:
    r"""Pool the figures of several seeds: the mean with its interval over seeds and its interval over tasks.

    With $m_s$, $h_s$ the mean and half-width of seed $s$: $\bar m \pm t_{0.975, S-1} \cdot s_m / \sqrt S$ over seeds,
    and $\sqrt{\overline{h_s^2}}$ over tasks. The two stay separate: more tasks shrink one, more seeds the other.

    Raises:
        ValueError: `figures` is empty, or their numbers of tasks differ.

    Example:
        >>> print(over_seeds([Interval(0.97, 0.01, 600), Interval(0.99, 0.01, 600), Interval(0.98, 0.01, 600)]))
        0.9800 ± 0.0248 (3 seeds), ± 0.0100 within a seed (600 tasks)
    """
    counts = {figure.num_tasks for figure in figures}
    if len(counts) != 1:
        raise ValueError(f"seeds are pooled over the same tasks, got figures over {sorted(counts) or 'no'} tasks")
    mean, ci95, num_seeds = interval([figure.mean for figure in figures])
    ci95_tasks = math.sqrt(sum(figure.ci95**2 for figure in figures) / num_seeds)
    return OverSeeds(mean, ci95, num_seeds, ci95_tasks, counts.pop())


def difference(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], subjects: np.ndarray | None = None
) -> Difference:
    r"""Mean difference of scores on the same tasks, paired over tasks but not over seeds.

    With $d_t$ the difference on task $t$ of the scores' means over seeds, and $a_s$, $b_s$ the means over tasks of each
    seed, the squared standard error is

    $$ v = \frac{s_d^2}{T} + \frac{s_a^2}{S_a} + \frac{s_b^2}{S_b}, $$

    without the seed term of a side that has one seed. The degrees of freedom are those of Welch and Satterthwaite. With
    one seed each this is the paired t-test.

    Args:
        ours: scores (S, T) of each seed on each task.
        theirs: the other learner's scores on the same tasks; its number of seeds may differ.
        subjects: (T,) as in `interval`, which gives the first term.

    Raises:
        ValueError: the numbers of tasks differ, or there are no scores.

    Example:
        >>> difference([[0.9, 0.7, 0.8]], [[0.8, 0.6, 0.6]])
        Difference(mean=0.133..., ci95=0.143..., num_tasks=3, p=0.057..., num_seeds=(1, 1))
    """
    sides = [np.asarray(side, float) for side in (ours, theirs)]
    if any(side.ndim != 2 or side.size == 0 for side in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(
            f"both must be (seeds, tasks) with the same number of tasks, got {sides[0].shape} and {sides[1].shape}"
        )
    mean, *paired = _moments(sides[0].mean(0) - sides[1].mean(0), subjects)
    over_sides = [_moments(side.mean(1))[1:] for side in sides if len(side) > 1]
    variances, freedoms = zip(paired, *over_sides)
    half_width, p = _t_test(mean, variances, freedoms)
    return Difference(mean, half_width, sides[0].shape[1], p, (len(sides[0]), len(sides[1])))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Adjust p values for several comparisons: the i-th smallest of m becomes $\max_{j \le i} (m - j + 1) \, p_{(j)}$.

    Holm's step-down correction controls the family-wise error: with the adjusted values compared to 0.05, the chance of
    even one false claim is below 0.05. NaN stays NaN and is not counted.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    References:
        Holm: A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, floor = list(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p))
        adjusted[index] = floor
    return adjusted


def _moments(values: np.ndarray, subjects: np.ndarray | None = None) -> tuple[float, float, int]:
    """Mean, squared standard error of the mean, and degrees of freedom."""
    count = len(values)
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged task makes the mean infinite, and reports say so
        if subjects is not None:
            _, cluster = np.unique(subjects, return_inverse=True)
            num_clusters = int(cluster.max()) + 1
            errors = np.bincount(cluster, values - values.mean())
            scale = num_clusters / (num_clusters - 1) if num_clusters > 1 else math.nan
            return float(values.mean()), scale * float((errors**2).sum()) / count**2, max(num_clusters - 1, 1)
        variance = float(np.var(values, ddof=1)) / count if count > 1 else math.nan
        return float(values.mean()), variance, max(count - 1, 1)


def _t_test(mean: float, variances: Sequence[float], freedoms: Sequence[int]) -> tuple[float, float]:
    """Half-width of the interval of a mean whose squared standard error is a sum, and the p value of its being 0.

    The degrees of freedom are Satterthwaite's.
    """
    from scipy.stats import t

    total = sum(variances)
    freedom = 1 / sum((v / total) ** 2 / f for v, f in zip(variances, freedoms)) if total > 0 else float(max(freedoms))
    error = math.sqrt(total)
    half_width = float(t.ppf(0.975, freedom)) * error
    if math.isnan(mean) or math.isnan(error):
        return half_width, math.nan
    if error == 0:
        return half_width, 1.0 if mean == 0 else 0.0
    return half_width, float(2 * t.sf(abs(mean) / error, freedom))
