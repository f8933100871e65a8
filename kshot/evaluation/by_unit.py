"""Figures by unit: which patient, school or user a learner fails on, and whether a baseline fails there too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kshot.evaluation.by_class import ByClass
from kshot.evaluation.by_label import LabelFigure
from kshot.evaluation.intervals import BOUNDS, Interval, interval
from kshot.evaluation.per_task import PerTask
from kshot.files import csv_text, write_text

UNITS, CLASSES, CONFUSIONS, LABELS = "units.csv", "classes.csv", "confusions.csv", "labels.csv"
"""Names of the tables in a run folder."""


class UnitFigure(NamedTuple):
    """The figure of a unit over its tasks.

    Attributes:
        figure: mean over the tasks of the unit, with its interval over them; without one if there is one task.
        others: name of another learner -> its mean over those of these tasks that it was scored on, NaN if none.
    """

    name: str
    figure: Interval
    others: dict[str, float]


def by_unit(
    evaluation: PerTask, metric: str, others: Mapping[str, PerTask], *, higher_is_better: bool
) -> list[UnitFigure]:
    """The figures of each unit, worst first; empty if tasks have no units, or several each, such as classes.

    Args:
        others: evaluations of other learners on the first of the same tasks.

    Example:
        >>> from kshot.evaluation.per_task import Scores
        >>> from kshot.evaluation.units import Units
        >>> units = Units(np.array([0, 0, 1]), "patient", ["Ann", "Bob"])
        >>> ours, theirs = (Scores(["a", "b", "c"], {"mae": each}, units) for each in ([1.0, 3.0, 9.0], [2.0] * 3))
        >>> [(u.name, u.figure.mean, u.others) for u in by_unit(ours, "mae", {"mean": theirs}, higher_is_better=False)]
        [('Bob', 9.0, {'mean': 2.0}), ('Ann', 2.0, {'mean': 2.0})]
    """
    units = evaluation.units
    if units is None or units.numbers.ndim != 1:
        return []
    values = np.asarray(evaluation.per_task[metric], float)
    figures = []
    for number in np.unique(units.numbers).tolist():
        tasks = np.flatnonzero(units.numbers == number)
        theirs = {name: _mean(np.asarray(other.per_task[metric], float), tasks) for name, other in others.items()}
        name = units.names[number] if len(units.names) else str(number)
        figures.append(UnitFigure(name, interval(list(values[tasks]), bounds=BOUNDS.get(metric)), theirs))
    return sorted(figures, key=lambda unit: _worst_first(unit.figure.mean, higher_is_better))


def _mean(values: np.ndarray, tasks: np.ndarray) -> float:
    known = tasks[tasks < len(values)]
    return float(values[known].mean()) if len(known) else math.nan


def _worst_first(mean: float, higher_is_better: bool) -> float:
    """A sort key; a figure that is not finite is the worst."""
    return -math.inf if not math.isfinite(mean) else mean if higher_is_better else -mean


def write_by_unit(path: Path, units: list[UnitFigure], unit: str, metric: str) -> None:
    """Write a CSV with one row per unit, worst first; cells of figures that are not known are empty."""
    names = list(units[0].others) if units else []
    header = [unit, "tasks", metric, f"{metric} low", f"{metric} high", *(f"{metric} of {name}" for name in names)]
    rows = [
        [each.name, each.figure.num_tasks, each.figure.mean, each.figure.low, each.figure.high]
        + [each.others[name] for name in names]
        for each in units
    ]
    write_text(path, _csv(header, rows))


def write_by_class(folder: Path, by_class: ByClass) -> None:
    """Write `classes.csv`, a row per class with the lowest recall first, and `confusions.csv`, a row per pair."""
    header = ["class", "queries", "tasks", "recall", "recall low", "recall high", "most often mistaken for"]
    rows = [
        [each.name, each.num_queries, recall.num_tasks, recall.mean, recall.low, recall.high, each.mistaken_for]
        for each, recall in ((each, each.recall) for each in by_class.classes)
    ]
    write_text(folder / CLASSES, _csv(header, rows))
    write_text(folder / CONFUSIONS, _csv(["true class", "predicted class", "times", "share"], by_class.confusions))


def write_by_label(path: Path, labels: Sequence[LabelFigure]) -> None:
    """Write a CSV with one row per label, the lowest average precision first."""
    header = ["label", "tasks", "average precision", "low", "high", "share of queries", "found", "false"]
    rows = [
        [each.name, figure.num_tasks, figure.mean, figure.low, figure.high, each.share, each.found, each.false]
        for each, figure in ((each, each.average_precision) for each in labels)
    ]
    write_text(path, _csv(header, rows))


def _csv(header: list[str], rows: list) -> str:
    known = ([None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows)
    return csv_text([header, *known])
