"""What describes a data set to experience: kind, sizes and how far simple methods get; no data, names or paths."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from kshot.app.build import Shapes, sort_of
from kshot.app.goes_with import targets_of
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target
from kshot.tasks.source import TaskSource
from kshot.types import tree_leaves

UNREACHABLE = 1e9
"""The bound of a target that no plan meets."""
HIGHER = ("accuracy", "balanced_accuracy", "auc", "micro_f1", "ndcg_10", "log_likelihood")
LOWER = ("mae", "mse", "rmse", "mase", "bits_per_character", "bits_per_byte", "loss")
"""The metrics that a choice is made by where no target names one; the first that the tasks report."""

WITHOUT_UNIT = ("accuracy", "balanced_accuracy", "auc", "micro_f1", "ndcg_10", "mase")
"""The metrics whose values are comparable across data sets."""

LOGARITHMIC = ("log_likelihood", "loss")
"""The metrics that are logarithms already."""

LEAST_SHARE = 1e-3
"""Of errors, such as 1 - accuracy, which are 0 where a few tasks are easy."""


def default_target(source: TaskSource) -> Target:
    """The metric of a source's tasks that plans are compared by, with a bound that no plan meets."""
    query, objective = source.task("train", 0).query, source.objective
    names = [*objective.metrics(objective.as_prediction(query.targets), query), "loss"]
    metric = next(name for name in names if name in HIGHER + LOWER)
    return Target(metric, metric in HIGHER, UNREACHABLE if metric in HIGHER else -UNREACHABLE)


def describe_data(source: TaskSource, shapes: Shapes, target: Target) -> dict[str, float | str]:
    """Descriptors of a source's tasks: kinds as strings, sizes as numbers.

    Example:
        >>> from kshot.app.build import shapes_of
        >>> source = kshot.sources.sinusoids()
        >>> describe_data(source, shapes_of(source), default_target(source))["kind"]
        'numbers'
    """
    task, about = source.task("train", 0), source.describe()
    sizes: dict[str, float] = {"support": len(task.support.weight), "query": len(task.query.weight)}
    sizes["features"] = sum(math.prod(leaf.shape[1:]) for leaf in tree_leaves(task.support.inputs))
    sizes["outputs"] = math.prod(task.support.targets.shape[1:])
    for name in ("ways", "shots", "rows", "queries"):
        if about.get(name) is not None:
            sizes[name] = _middle(about[name])
    try:
        per_unit = source.sizes("train")
    except ValueError:  # tasks are drawn, and have no units
        per_unit = {}
    if per_unit:
        sizes |= {"units": len(per_unit), "examples": sum(per_unit.values())}
    return {
        "kind": targets_of(source.objective) or "other",
        "inputs": sort_of(shapes),
        "dimensions": len(shapes["inputs"]) if isinstance(shapes["inputs"], list) else 0,
        "forecasts": int(bool(source.forecasts)),
        "encoded": int(about.get("features") == "encoder"),
        "metric": target.metric,
        "higher_is_better": int(target.at_least),
        **{f"log_{name}": math.log1p(float(size)) for name, size in sizes.items()},
    }


def describe_simple(figures: Mapping[str, Interval], target: Target) -> dict[str, float]:
    """Descriptors of what simple methods reach on validation tasks: the error of the best on the scale of `error_of`,
    and by how much the errors of the others are larger."""
    errors = {name: error_of(figure.mean, target) for name, figure in figures.items()}
    errors = {name: error for name, error in errors.items() if math.isfinite(error)}
    if not errors:
        return {}
    best = min(errors.values())
    return {"simple_error": best} | {f"simple {name}": min(error - best, 3.0) for name, error in errors.items()}


def error_of(value: float, target: Target) -> float:
    r"""An error on a scale on which differences are comparable across data sets: $\log e$ of an error $e > 0$, such as
    $1 - \text{accuracy}$ or a squared error; $-\ell$ of a log-likelihood $\ell$."""
    if target.metric in LOGARITHMIC:
        return -value if target.at_least else value
    error = max(1.0 - value, LEAST_SHARE) if target.at_least else max(value, sys.float_info.min)
    return math.log(error) if math.isfinite(value) else math.inf


def noise_of(figure: Interval, target: Target) -> float:
    """The standard error of `error_of` of a figure, to first order; infinite for a single unit, which tells nothing of
    others, and 0 if all tasks have the same figure."""
    if (figure.num_units or figure.num_tasks) == 1:
        return math.inf
    error = figure.half_width / 2
    return error if target.metric in LOGARITHMIC else error / math.exp(error_of(figure.mean, target))


def value_of(error: float, target: Target) -> float:
    """The value of the target's metric with an error on the scale of `error_of`."""
    if target.metric in LOGARITHMIC:
        return -error if target.at_least else error
    return 1.0 - math.exp(error) if target.at_least else math.exp(error)


def _middle(value: Any) -> float:
    return sum(value) / len(value) if isinstance(value, list | tuple) else float(value)
