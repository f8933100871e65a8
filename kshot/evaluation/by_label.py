"""Figures by label of multi-label tasks: how well the queries with a label are ranked above those without.

Shape legend: n examples, C labels of a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from kshot.evaluation.intervals import Interval, interval
from kshot.objectives.multilabel import mean_average_precision
from kshot.types import Batch


class LabelFigure(NamedTuple):
    """The average precision of a label over its tasks.

    Attributes:
        average_precision: with its interval over the tasks of the label in which a query has it.
        share: of the queries of these tasks that have the label: the average precision of guessing.
        found: of the queries that have the label, the share for which it is predicted.
        false: of the queries that lack the label, the share for which it is predicted; NaN if none does.
    """

    name: str
    average_precision: Interval
    share: float
    found: float
    false: float


class ByLabelMeter:
    """Accumulates the predictions of one task after another; `result` gives the figures by label, the worst first.

    Example:
        >>> import torch
        >>> meter = ByLabelMeter()
        >>> targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> meter.add(torch.tensor([[1.0, 1.0], [2.0, 3.0], [-1.0, 2.0]]), Batch.of(torch.zeros(3, 1), targets), "ab")
        >>> [(each.name, each.average_precision.mean, each.false) for each in meter.result()]
        [('a', 0.5, 0.5), ('b', 1.0, 1.0)]
    """

    def __init__(self) -> None:
        self._tasks: dict[str, list[tuple[float, ...]]] = {}
        """Of each label and task: average precision, and the weight of true, found, false and all queries."""

    def add(self, prediction: Tensor, query: Batch, names: Sequence[str]) -> None:
        """Add the logits (n, C) for a task's query set; `names` are of its labels, in the order of the targets."""
        weight = query.weight
        for number, name in enumerate(names):
            true, logits = (query.targets[:, number : number + 1] >= 0.5).to(weight.dtype), prediction[:, number, None]
            predicted, true_n = (logits[:, 0] > 0).to(weight.dtype), true[:, 0]
            sums = (true_n, true_n * predicted, (1 - true_n) * predicted, true_n * 0 + 1)
            entry = (float(mean_average_precision(logits, true, weight)), *(float(weight @ each) for each in sums))
            self._tasks.setdefault(name, []).append(entry)

    def result(self) -> tuple[LabelFigure, ...]:
        """The figures by label, lowest average precision first; empty if nothing was added."""
        figures = []
        for name, tasks in self._tasks.items():
            with_it = [task for task in tasks if task[1] > 0]
            if with_it:
                true, found, false, total = (sum(task[part] for task in with_it) for part in range(1, 5))
                precision = interval([task[0] for task in with_it], bounds=(0.0, 1.0))
                wrongly = false / (total - true) if total > true else math.nan
                figures.append(LabelFigure(name, precision, true / total, found / true, wrongly))
        return tuple(sorted(figures, key=lambda each: each.average_precision.mean))
