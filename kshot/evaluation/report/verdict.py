"""What may be said in words of the figures of a run: how they are written, and whether the baselines are beaten.

A figure is a mapping {"mean", "ci95", "num_tasks"}, as `Interval._asdict` makes it and JSON gives it back: null is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kshot.evaluation.intervals import LEVEL, Interval

Figures = Mapping[str, Mapping[str, Any]]
"""Metric -> figure."""


def read(figures: Figures | None, metric: str) -> Interval:
    """One metric's figure as an `Interval`; NaN over 0 tasks where it is missing."""
    found = (figures or {}).get(metric) or {}
    mean, ci95 = (math.nan if found.get(name) is None else float(found[name]) for name in ("mean", "ci95"))
    return Interval(mean, ci95, int(found.get("num_tasks") or 0))


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
    mean = f"{figure.mean:.{places}f}"
    return f"{mean if float(mean) else mean.lstrip('-')}{half}"


def decimals(figure: Interval) -> int:
    """Decimals that show the interval's first digit: 3 to 8, fewer for figures above 100."""
    small = figure.ci95 if math.isfinite(figure.ci95) and figure.ci95 > 0 else abs(figure.mean) / 100 or 1.0
    if abs(figure.mean) >= 100:
        return 1
    return min(8, max(3, math.ceil(-math.log10(small) - 1e-9)))


def over(figures: Figures | None, metric: str) -> str:
    """Over what a figure and its interval were taken: tasks, or seeds and the tasks of each.

    Example:
        >>> over({"mse": {"mean": 0.5, "ci95": 0.1, "num_tasks": 600}}, "mse")
        '600 tasks, 1 seed'
        >>> over({"mse": {"mean": 0.5, "ci95": 0.1, "num_seeds": 3, "ci95_tasks": 0.02, "num_tasks": 600}}, "mse")
        '3 seeds; ± 0.020 over 600 tasks within a seed'
    """
    figure = (figures or {}).get(metric) or {}
    count = int(figure.get("num_tasks") or 0)
    tasks = f"{count} task{'s' * (count != 1)}"
    if figure.get("ci95_tasks") is None:
        return f"{tasks}, 1 seed"
    within = Interval(float(figure["mean"]), float(figure["ci95_tasks"]), count)
    return f"{figure['num_seeds']} seeds; ± {within.ci95:.{decimals(within)}f} over {tasks} within a seed"


def difference_to(paired: Figures, name: str) -> str:
    """The learner less a baseline on the same tasks, and whether it may be noise; nothing where it is not known.

    Args:
        paired: name -> difference, as `compare.differences` gives it.
        name: of the baseline.

    Example:
        >>> difference_to({"centroid": {"mean": 0.01, "ci95": 0.02, "num_tasks": 100, "p_holm": 0.3}}, "centroid")
        '+0.010 ± 0.020, may be noise'
    """
    if name not in paired:
        return ""
    found, p = read(paired, name), paired[name].get("p_holm")
    sign = "+" if found.mean > 0 else ""
    return f"{sign}{written(found)}" + ("" if p is not None and p < LEVEL else ", may be noise")


def best_baseline(
    baselines: Mapping[str, Figures] | None, metric: str, higher_is_better: bool
) -> tuple[str, Interval] | None:
    """Name and figure of the baseline with the best mean; None if there is none with a finite one."""
    found = {name: read(figures, metric) for name, figures in (baselines or {}).items()}
    finite = [(name, figure) for name, figure in found.items() if math.isfinite(figure.mean)]
    choose = max if higher_is_better else min
    return choose(finite, key=lambda pair: pair[1].mean) if finite else None


def failed(report: Mapping[str, Any]) -> list[str]:
    """Names of the audits that the test figures of a report failed."""
    return [audit["name"] for audit in report.get("audits") or [] if audit["result"] == "FAILED"]


def verdict(
    test: Figures | None,
    baselines: Mapping[str, Figures] | None,
    metric: str,
    higher_is_better: bool = True,
    paired: Figures | None = None,
    failed: Sequence[str] = (),
) -> str:
    """Whether meta-learning was worth it: the learner against the best baseline, task by task.

    A difference is claimed only where it is shown: by the paired difference on the tasks that both were scored on, its
    p value corrected for the number of baselines. Where no paired difference is given, the two 95 % intervals must be
    apart, which errs on the side of "as good".

    Args:
        test: the learner's test figures by metric; None if there are none.
        baselines: name -> test figures by metric, of learners that do no meta-learning.
        metric: the one to compare.
        higher_is_better: True for an accuracy, False for an error.
        paired: name -> the learner's difference to that baseline, as `compare.differences` gives it.
        failed: names of the audits that the test figures failed: then nothing is claimed.

    Returns:
        A sentence.

    Example:
        >>> verdict(
        ...     {"accuracy": {"mean": 0.95, "ci95": 0.01, "num_tasks": 600}},
        ...     {"centroid": {"accuracy": {"mean": 0.94, "ci95": 0.01, "num_tasks": 600}}},
        ...     "accuracy",
        ...     paired={"centroid": {"mean": 0.01, "ci95": 0.002, "num_tasks": 600, "p_holm": 1e-9}},
        ... )
        'The learner beats the best baseline without meta-learning by 0.010 ± 0.002 on the same 600 tasks: accuracy ...'
    """
    if not test:
        return "There is no test figure, so nothing can be said about the learner against the baselines."
    if failed:
        return f"The test figure is not to be trusted, and nothing is claimed of it; it failed: {', '.join(failed)}."
    learner, best = read(test, metric), best_baseline(baselines, metric, higher_is_better)
    if not math.isfinite(learner.mean):
        return f"The learner gave no finite {metric} on the test tasks: it cannot be compared, and should not be used."
    if best is None:
        missing = "No baseline gave a finite figure" if baselines else "No baseline was evaluated"
        return f"{missing}, so whether meta-learning was worth its cost is not known."
    name, baseline = best
    sizes = [
        f"{each.num_tasks} tasks" if learner.num_tasks != baseline.num_tasks else "" for each in (learner, baseline)
    ]
    ours = f"{metric} {written(learner)}" + (f" ({sizes[0]})" if sizes[0] else "")
    against = f"{ours} against {written(baseline)} ({', '.join(filter(None, [name.replace('_', ' '), sizes[1]]))})"
    if paired and name in paired:
        difference = read(paired, name)
        p = paired[name].get("p_holm")
        shown = p is not None and p < LEVEL
        where = (
            f" on the same {difference.num_tasks} tasks"
            if learner.num_tasks == baseline.num_tasks
            else (f" on the {difference.num_tasks} tasks that both were scored on")
        )
        unsure = not math.isfinite(difference.ci95)
    else:
        reach = learner.ci95 + baseline.ci95
        difference = Interval(learner.mean - baseline.mean, reach, min(learner.num_tasks, baseline.num_tasks))
        shown, where, unsure = abs(difference.mean) > reach, "", not math.isfinite(reach)
    if unsure:
        return f"Too few tasks to tell the learner from the best baseline: {against}, without an interval."
    gap = difference.mean if higher_is_better else -difference.mean
    by = written(difference._replace(mean=abs(gap)))
    if shown and gap > 0:
        return f"The learner beats the best baseline without meta-learning by {by}{where}: {against}."
    if shown:
        return f"The learner is worse than the best baseline without meta-learning by {by}{where}: {against}."
    size = written(difference._replace(mean=gap))
    return f"The simple baseline is as good here: {against}; a difference of {size}{where} may be noise."
