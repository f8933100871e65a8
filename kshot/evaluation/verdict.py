"""What may be said in words of the figures of a run: how they are written, and whether the baselines are beaten.

A figure is a mapping {"mean", "ci95", "tasks"}, as `Interval._asdict` makes it and JSON gives it back: null is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kshot.evaluation.intervals import Interval

Figures = Mapping[str, Mapping[str, Any]]
"""Metric -> figure."""


def read(figures: Figures | None, metric: str) -> Interval:
    """One metric's figure as an `Interval`; NaN over 0 tasks where it is missing."""
    found = (figures or {}).get(metric) or {}
    mean, ci95 = (math.nan if found.get(name) is None else float(found[name]) for name in ("mean", "ci95"))
    return Interval(mean, ci95, int(found.get("tasks") or 0))


def written(figure: Interval) -> str:
    """A figure for a person: three decimals, more where the interval is smaller than they can show.

    Example:
        >>> written(Interval(0.95312, 0.0041, 1000)), written(Interval(2.4e-5, 3e-6, 100))
        ('0.953 ± 0.004', '0.000024 ± 0.000003')
    """
    if not math.isfinite(figure.mean):
        return "not finite"
    places = decimals(figure)
    half = f" ± {figure.ci95:.{places}f}" if math.isfinite(figure.ci95) else ""
    return f"{figure.mean:.{places}f}{half}"


def decimals(figure: Interval) -> int:
    """Decimals that show the interval's first digit: 3 to 8, fewer for figures above 100."""
    small = figure.ci95 if math.isfinite(figure.ci95) and figure.ci95 > 0 else abs(figure.mean) / 100 or 1.0
    if abs(figure.mean) >= 100:
        return 1
    return min(8, max(3, math.ceil(-math.log10(small) - 1e-9)))


def best_baseline(
    baselines: Mapping[str, Figures] | None, metric: str, higher_is_better: bool
) -> tuple[str, Interval] | None:
    """Name and figure of the baseline with the best mean; None if there is none with a finite one."""
    found = {name: read(figures, metric) for name, figures in (baselines or {}).items()}
    finite = [(name, figure) for name, figure in found.items() if math.isfinite(figure.mean)]
    choose = max if higher_is_better else min
    return choose(finite, key=lambda pair: pair[1].mean) if finite else None


def verdict(
    test: Figures | None, baselines: Mapping[str, Figures] | None, metric: str, higher_is_better: bool = True
) -> str:
    """Whether meta-learning was worth it: the learner against the best baseline, judged by their 95 % intervals.

    A difference is claimed only where the two intervals are apart, the same rule that the decisions go by. It errs on
    the side of "as good": the tasks are the same ones, and a paired test would see smaller differences.

    Args:
        test: the learner's test figures by metric; None if there are none.
        baselines: name -> test figures by metric, of learners that do no meta-learning.
        metric: the one to compare.
        higher_is_better: True for an accuracy, False for an error.

    Returns:
        A sentence.

    Example:
        >>> verdict(
        ...     {"accuracy": {"mean": 0.95, "ci95": 0.01, "tasks": 600}},
        ...     {"nearest centroid": {"accuracy": {"mean": 0.7, "ci95": 0.01, "tasks": 600}}},
        ...     "accuracy",
        ... )
        'The learner beats the best baseline without meta-learning by 0.250: accuracy 0.950 ± 0.010 against ...'
    """
    if not test:
        return "There is no test figure, so nothing can be said about the learner against the baselines."
    learner, best = read(test, metric), best_baseline(baselines, metric, higher_is_better)
    if not math.isfinite(learner.mean):
        return f"The learner gave no finite {metric} on the test tasks: it cannot be compared, and should not be used."
    if best is None:
        missing = "No baseline gave a finite figure" if baselines else "No baseline was evaluated"
        return f"{missing}, so whether meta-learning was worth its cost is not known."
    name, baseline = best
    against = f"{metric} {written(learner)} against {written(baseline)} ({name})"
    reach = learner.ci95 + baseline.ci95
    if not math.isfinite(reach):
        return f"Too few tasks to tell the learner from the best baseline: {against}, without an interval."
    gap = learner.mean - baseline.mean if higher_is_better else baseline.mean - learner.mean
    by = f"{abs(gap):.{max(decimals(learner), decimals(baseline))}f}"
    if gap > reach:
        claim = f"The learner beats the best baseline without meta-learning by {by}"
        return f"{claim}: {against}; their 95 % intervals are apart."
    if gap < -reach:
        return f"The learner is worse than the best baseline without meta-learning by {by}: {against}."
    return f"The simple baseline is as good here: {against}; their 95 % intervals overlap, so no difference is shown."
