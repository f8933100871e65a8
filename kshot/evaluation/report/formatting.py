"""Formatting of figures, counts, durations and settings for a reader.

A figure in a report is a mapping {"mean", "ci95", "num_tasks"}, from `Interval._asdict` or JSON: null stands for NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kshot.evaluation.intervals import SYMMETRIC, Interval
from kshot.evaluation.moments import LEVEL

Figures = Mapping[str, Mapping[str, Any]]
"""Metric -> figure."""


def read_figure(figures: Figures | None, metric: str) -> Interval:
    """One metric's figure as an `Interval`; NaN over 0 tasks if it is missing."""
    return as_interval((figures or {}).get(metric))


def as_interval(figure: Mapping[str, Any] | None) -> Interval:
    """A figure of a report as an `Interval`: what is None in it is NaN; NaN over 0 tasks for None."""
    figure = figure or {}
    mean, ci95 = (math.nan if figure.get(name) is None else float(figure[name]) for name in ("mean", "ci95"))
    num_units, unit = figure.get("num_units"), figure.get("unit") or "task"
    return Interval(mean, ci95, int(figure.get("num_tasks") or 0), float(figure.get("shift") or 0.0), num_units, unit)


def learner_name(learner: Mapping[str, Any] | None) -> str:
    """The name of a run's learner from its section of the run file: its kind, or the name of a baseline.

    Example:
        >>> learner_name({"kind": "maml"}), learner_name({"kind": "kshot.evaluation.baselines:baseline", "name": "knn"})
        ('maml', 'knn')
    """
    kind = (learner or {}).get("kind") or ""
    return str((learner or {}).get("name") or kind) if kind.endswith(".baselines:baseline") else kind


def rank_key(mean: float, higher_is_better: bool) -> float:
    """A sort key that puts the best mean first, and those that are not finite last."""
    return (-mean if higher_is_better else mean) if math.isfinite(mean) else math.inf


def format_figure(figure: Interval) -> str:
    """A figure with its half-width, by three decimals, or more if the interval is smaller than those can show.

    A skewed interval is given by its ends.

    Example:
        >>> format_figure(Interval(0.95312, 0.0041, 1000)), format_figure(Interval(2.4e-5, 3e-6, 100))
        ('0.953 ± 0.004', '0.000024 ± 0.000003')
        >>> format_figure(Interval(0.99, 0.01, 100, shift=-0.005))
        '0.990 (0.975 to 0.995)'
    """
    if not math.isfinite(figure.mean):
        return "not finite"
    decimals = _decimals(figure)
    mean = f"{figure.mean:z.{decimals}f}"
    if not math.isfinite(figure.ci95):
        return mean
    if abs(figure.shift) > SYMMETRIC * figure.ci95:
        return f"{mean} ({figure.low:z.{decimals}f} to {figure.high:z.{decimals}f})"
    return f"{mean} ± {figure.ci95:.{decimals}f}"


def _decimals(figure: Interval) -> int:
    """The decimals that show the interval's first digit: 3 to 8, or 1 for figures above 100."""
    if abs(figure.mean) >= 100:
        return 1
    small = figure.half_width if figure.half_width > 0 else abs(figure.mean) / 100 or 1.0
    return min(8, max(3, math.ceil(-math.log10(small) - 1e-9)))


def format_value(value: float | None) -> str:
    return format_figure(Interval(math.nan if value is None else float(value), math.nan, 1))


def format_difference(difference: Interval, p: float | None) -> str:
    """A difference with its sign, marked if it is not significant at its corrected p value.

    Example:
        >>> format_difference(Interval(0.01, 0.02, 100), 0.3)
        '+0.010 ± 0.020, not significant'
    """
    significant = p is not None and p < LEVEL
    return f"{'+' * (difference.mean > 0)}{format_figure(difference)}{'' if significant else ', not significant'}"


def format_sample(figures: Figures | None, metric: str) -> str:
    """The sample of a figure: its tasks, or its seeds and the tasks of each.

    Example:
        >>> format_sample({"mse": {"mean": 0.5, "ci95": 0.1, "num_tasks": 600}}, "mse")
        '600 tasks, 1 seed'
        >>> pooled = {"mean": 0.5, "ci95": 0.1, "num_seeds": 3, "ci95_tasks": 0.02, "num_tasks": 600}
        >>> format_sample({"mse": pooled}, "mse")
        '3 seeds; ± 0.020 over 600 tasks within a seed'
    """
    figure = (figures or {}).get(metric) or {}
    tasks = read_figure(figures, metric).sample
    if figure.get("ci95_tasks") is None:
        return f"{tasks}, 1 seed"
    half = float(figure["ci95_tasks"])
    decimals = _decimals(Interval(float(figure["mean"]), half, 1))
    return f"{figure['num_seeds']} seeds; ± {half:.{decimals}f} over {tasks} within a seed"


def format_count(count: float, unit: str = "") -> str:
    """A large number with a decimal prefix.

    Example:
        >>> format_count(950, "B"), format_count(1_620_000), format_count(3.2e9, "B")
        ('950 B', '1.62 M', '3.2 GB')
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}{unit}"
    return f"{count:.0f} {unit}".rstrip()


def format_duration(seconds: float | None) -> str:
    """Seconds in suitable units; a dash for None.

    Example:
        >>> format_duration(4.21), format_duration(134), format_duration(7262)
        ('4.2 s', '2 min 14 s', '2 h 1 min')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_setting(value: Any, key: str = "") -> str:
    """A setting of a run file or protocol; task sizes that are lists are ranges."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        texts = {name: format_setting(entry, name) for name, entry in value.items()}
        return ", ".join(f"{k} ({text})" if isinstance(value[k], dict) else f"{k} {text}" for k, text in texts.items())
    if isinstance(value, list):
        sizes = ("ways", "train_ways", "shots", "queries", "train_queries")
        return (" to " if key in sizes else ", ").join(map(format_setting, value))
    return str(value)


def better(higher: bool) -> str:
    return f"{'higher' if higher else 'lower'} is better"


def plural(count: int, noun: str) -> str:
    """A count with its noun, such as "1 task" or "2 tasks"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def capitalize(sentence: str) -> str:
    """A sentence with a capital first letter, the rest unchanged."""
    return sentence[:1].upper() + sentence[1:]
