"""The figure of a trained learner at several numbers of support examples of the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.intervals import Interval
from kshot.learner import Learner
from kshot.tasks.source import TaskSource
from kshot.types import Split, Task


class Shots(NamedTuple):
    """Figures of a learner at one number of shots: metric -> mean ± 95 % interval over tasks."""

    shots: int
    metrics: dict[str, Interval]


class FewerShots(TaskSource):
    """The tasks of a source with at most `shots` support examples (per class if tasks have classes of their own).

    The last examples are kept: in an ordered support set they are the nearest to the query, as in a shorter one. All
    queries are kept, and names of classes. A smaller support set is padded by rows of weight 0. Unlike
    `TaskSource.with_shots`, which draws tasks anew, the support set is a subset of the source's.

    Example:
        >>> FewerShots(kshot.sources.sinusoids(shots=10), 3).task("test", 0).support.weight
        tensor([1., 1., 1.])
    """

    def __init__(self, source: TaskSource, shots: int) -> None:
        if shots < 1:
            raise ValueError(f"a task needs at least one shot, got shots={shots}")
        self.source, self.shots = source, shots
        self.objective, self.seed = source.objective, source.seed
        self.member, self.unit, self.preprocessor = source.member, source.unit, source.preprocessor
        self.has_names = source.has_names

    @property
    def raw(self) -> TaskSource:
        raw = self.source.raw
        return self if raw is self.source else FewerShots(raw, self.shots)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        return self.source.units(split, indices)

    def unit_names(self, split: Split) -> Sequence[str]:
        return self.source.unit_names(split)

    def classes_of(self, split: Split, indices: Sequence[int]) -> list[list[str]] | None:
        return self.source.classes_of(split, indices)

    def task(self, split: Split, index: int) -> Task:
        task = self.source.task(split, index)
        support, real = task.support, task.support.weight > 0
        if self.objective.task_specific_classes:
            of_class = support.targets.argmax(1)[:, None] == torch.arange(support.targets.shape[1])  # (n, C)
        else:
            of_class = torch.ones(len(real), 1, dtype=torch.bool)
        is_name = torch.zeros_like(real)
        if self.has_names:
            is_name = task.support.inputs[:, -1] > 0
        of_class = of_class & (real & ~is_name)[:, None]
        rank = (of_class.flip(0).cumsum(0).flip(0) * of_class).sum(1)  # 1 for the last of its class, 0 for a name
        keep = real & (rank <= self.shots)
        count = self.shots * of_class.shape[1] + int(is_name.sum())
        first = keep.to(torch.int8).argsort(descending=True, stable=True)[:count]
        rows = support.rows(first)
        return task._replace(support=rows._replace(weight=rows.weight * keep[first]))


def over_shots(
    learner: Learner, source: TaskSource, shots: Sequence[int], *, split: Split = "test", num_tasks: int = 100
) -> list[Shots]:
    """Evaluate a learner, without retraining, at several numbers of shots, on the same tasks with the same queries.

    Args:
        source: source of tasks with at least `max(shots)` shots.
        shots: numbers of support examples, per class if tasks have classes of their own.
        split, num_tasks: as in `evaluate`.

    Raises:
        ValueError: fewer than one shot or one task.

    Example:
        >>> source = kshot.sources.sinusoids(shots=10)
        >>> mean = kshot.learners.SupportMean(source.objective)
        >>> few, many = over_shots(mean, source, [1, 10], num_tasks=50)
        >>> few.metrics["mse"].mean > many.metrics["mse"].mean
        True
    """
    options: dict[str, Any] = {"split": split, "num_tasks": num_tasks, "audit": False}
    return [Shots(count, evaluate(learner, FewerShots(source, count), **options).metrics) for count in shots]
