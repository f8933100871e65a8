"""Confidence intervals over the units of tasks and over seeds, and paired differences.

Tasks of a unit, such as a patient or a school, have correlated figures: 600 tasks of 6 patients are 6 observations. An
interval is the union of Student's and of Hall's, which is corrected for skewness (see `moments`).
`benchmarks/coverage.py` simulates how often they cover the truth.

Shape legend: S seeds, T tasks, U units, K units of a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kshot.evaluation.moments import LEVEL, ends, moments_of, p_value, with_seeds
from kshot.evaluation.units import Units, count_of

SHARES = ("accuracy", "balanced_accuracy", "auc", "micro_f1", "macro_f1", "mean_average_precision",
          "label_ranking_average_precision", "subset_accuracy", "hamming_loss", "mean_iou", "fb_iou", "pixel_accuracy",
          "ndcg_1", "ndcg_3", "ndcg_5", "ndcg_10", "precision_5", "recall_10")  # fmt: skip
ERRORS = ("mae", "mse", "rmse", "mase", "bits_per_character", "bits_per_byte")
BOUNDS = dict.fromkeys(SHARES, (0.0, 1.0)) | dict.fromkeys(ERRORS, (0.0, math.inf))
"""Smallest and largest value of metrics that have them, by name; an interval does not go beyond them."""


class Interval(NamedTuple):
    """A mean over tasks and its 95 % confidence interval, which need not be symmetric.

    Attributes:
        mean: the mean.
        ci95: half of the interval's width; NaN if it is not known.
        num_tasks: number of tasks.
        shift: middle of the interval minus the mean; 0 for a symmetric one.
        num_units: number of independent units, such as patients; None if each task is one.
        unit: name of a unit.
    """

    mean: float
    ci95: float
    num_tasks: int
    shift: float = 0.0
    num_units: int | None = None
    unit: str = "task"

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean + self.shift - self.ci95

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.shift + self.ci95

    @property
    def half_width(self) -> float:
        """`ci95`, or 0 if it is not finite."""
        return self.ci95 if math.isfinite(self.ci95) else 0.0

    @property
    def sample(self) -> str:
        """The number of tasks, and of the units that they belong to."""
        units = "" if self.num_units is None else f" of {count_of(self.num_units, self.unit)}"
        return f"{count_of(self.num_tasks, 'task')}{units}"

    def __str__(self) -> str:
        digits = _decimals(max(abs(self.mean), self.half_width))
        if not math.isfinite(self.ci95):
            return f"{self.mean:.{digits}f}, without an interval ({self.sample})"
        if abs(self.shift) > SYMMETRIC * self.ci95:
            return f"{self.mean:.{digits}f} ({self.low:z.{digits}f} to {self.high:z.{digits}f}; {self.sample})"
        return f"{self.mean:.{digits}f} ± {self.ci95:.{digits}f} ({self.sample})"


def _decimals(size: float) -> int:
    """The decimals of figures of a size: 4, or more where these would leave fewer than three digits."""
    return min(3 - math.floor(math.log10(size)), 12) if 0 < size < 0.01 else 4


SYMMETRIC = 0.2  # the largest shift, in half-widths, at which an interval is written as mean ± half-width


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
        mean, ci95, num_tasks, shift, num_units, unit: mean of ours minus theirs, and its interval, as in `Interval`.
        p: two-sided p value of the hypothesis that there is no difference.
        num_seeds: number of seeds of ours and of theirs. With one seed each the interval is over tasks only and does
            not cover the variation between trainings.
    """

    mean: float
    ci95: float
    num_tasks: int
    p: float
    num_seeds: tuple[int, int] = (1, 1)
    shift: float = 0.0
    num_units: int | None = None
    unit: str = "task"


def interval(
    values: Sequence[float], units: Units | None = None, *, bounds: tuple[float, float] | None = None
) -> Interval:
    r"""Mean over tasks, and its interval over units.

    With $e_u$ the sum of the deviations from the mean over the tasks of unit $u$, the squared standard error is

    $$ v = \frac{U}{U - 1} \sum_u \frac{e_u^2}{T^2} $$

    which equals $s^2 / n$ if each unit has one task. Its degrees of freedom are
    $(\sum_u n_u^2)^2 / \sum_u n_u^4$, at most $U - 1$. A task may have K units, such as its classes; see
    `moments.of_members`.

    If all values are equal, their spread is not known, and `ci95` is NaN, unless the metric has both bounds: at most a
    share $1 - 0.025^{1/U}$ of units then has other values, at worst the bound.

    Args:
        values: (T,) figure of each task.
        units: of the tasks; None if each task is its own.
        bounds: smallest and largest value of the metric, if it has them.

    Example:
        >>> print(interval([0.0, 1.0, 0.0, 1.0]))
        0.5000 ± 0.9187 (4 tasks)
        >>> print(interval([0.0, 0.0, 1.0, 1.0], Units(np.array([0, 0, 1, 1]), "user")))
        0.5000 ± 6.3531 (4 tasks of 2 users)
        >>> interval([1.0, 1.0], bounds=(0, 1)).low
        0.158...
    """
    array = np.asarray(values, float)
    moments = moments_of(array, units)
    mean, num_units = moments.mean, moments.num_units if units is not None else None
    low, high = ends(moments)
    if moments.variance == 0 and bounds is not None and math.isfinite(bounds[1] - bounds[0]):
        share = 1 - (LEVEL / 2) ** (1 / moments.num_units)
        low, high = mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean)
    elif bounds is not None and math.isfinite(low):
        low, high = max(low, min(bounds[0], mean)), min(high, max(bounds[1], mean))
    ci95 = (high - low) / 2
    shift = (high + low) / 2 - mean if math.isfinite(ci95) else 0.0
    shift = shift if abs(shift) > 1e-9 * ci95 else 0.0
    return Interval(mean, ci95, len(array), shift, num_units, units.unit if units is not None else "task")


def over_splits(figures: Sequence[Interval]) -> Interval:
    """The mean of figures on as many tasks each, of other units, with its interval over all units.

    The distances of each end from the means are added in squares, so that skewed intervals, and bounds, are kept.

    Example:
        >>> print(over_splits([Interval(0.4, 0.06, 100), Interval(0.6, 0.08, 100)]))
        0.5000 ± 0.0500 (200 tasks)
    """
    if len(figures) == 1:
        return figures[0]
    mean = sum(figure.mean for figure in figures) / len(figures)
    if all(math.isfinite(figure.ci95) for figure in figures):
        below = math.hypot(*(figure.mean - figure.low for figure in figures)) / len(figures)
        above = math.hypot(*(figure.high - figure.mean for figure in figures)) / len(figures)
    else:  # one unit each
        below = above = interval([figure.mean for figure in figures]).ci95
    known = [figure.num_units for figure in figures if figure.num_units is not None]
    num_units = sum(known) if known else None
    num_tasks = sum(figure.num_tasks for figure in figures)
    return Interval(mean, (below + above) / 2, num_tasks, (above - below) / 2, num_units, figures[0].unit)


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
    moments = moments_of(np.array([figure.mean for figure in figures]))._replace(skew=0.0)
    low, high = ends(moments)
    ci95_tasks = math.sqrt(sum(figure.ci95**2 for figure in figures) / len(figures))
    return OverSeeds(moments.mean, (high - low) / 2, len(figures), ci95_tasks, counts.pop())


def difference(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    units: Units | None = None,
) -> Difference:
    r"""Mean difference of scores on the same tasks, paired over tasks but not over seeds.

    With $d_t$ the difference on task $t$ of the scores' means over seeds, and $a_s$, $b_s$ the means over tasks of each
    seed, the squared standard error is

    $$ v = \frac{s_d^2}{T} + \frac{s_a^2}{S_a} + \frac{s_b^2}{S_b}, $$

    with the first term over units as in `interval`. The degrees of freedom are those of Welch and Satterthwaite. If one
    side has a single seed, and so no variance of its own, both are given the variance of the other. With one seed each
    there is no term of seeds.

    The p value is the larger one of t with and without Hall's correction, and never below $2^{1 - m}$ if $m$ units
    differ, which is the least that a test by signs can give.

    Args:
        ours: scores (S, T) of each seed on each task.
        theirs: the other learner's scores on the same tasks; its number of seeds may differ.
        units: as in `interval`.

    Raises:
        ValueError: the numbers of tasks differ, or there are no scores.

    Example:
        >>> difference([[0.9, 0.7, 0.8]], [[0.8, 0.6, 0.6]])[:4]
        (0.133..., 0.143..., 3, 0.25)
    """
    sides = [np.asarray(side, float) for side in (ours, theirs)]
    if any(side.ndim != 2 or side.size == 0 for side in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(
            f"both must be (seeds, tasks) with the same number of tasks, got {sides[0].shape} and {sides[1].shape}"
        )
    differences = sides[0].mean(0) - sides[1].mean(0)
    paired = moments_of(differences, units)
    moments = with_seeds(paired, [side.mean(1) for side in sides])
    low, high = ends(moments)
    ci95 = (high - low) / 2
    shift = (high + low) / 2 - moments.mean if math.isfinite(ci95) else 0.0
    p = max(p_value(moments), min(1.0, 2.0 ** (1 - paired.num_other))) if math.isfinite(moments.mean) else math.nan
    counts = (len(sides[0]), len(sides[1]))
    num_units, unit = (None, "task") if units is None else (paired.num_units, units.unit)
    return Difference(moments.mean, ci95, sides[0].shape[1], p, counts, shift, num_units, unit)


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
