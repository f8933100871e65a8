"""Errors by class: the recall of each class with its interval, and which classes are mistaken for which.

Shape legend: n examples, W classes of a task, C classes of all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kshot.conversion import to_numpy
from kshot.evaluation.intervals import Interval, interval
from kshot.evaluation.units import Units
from kshot.types import Batch

FEW = 50
"""Largest number of classes whose matrix may be wanted."""
NEITHER = "none of them"
"""The class of a prediction that is not a number."""


class ClassFigure(NamedTuple):
    """The recall of a class: the share of its queries that were classified correctly, over all tasks.

    Attributes:
        recall: with its interval over the tasks of the class, or their units.
        num_queries: number of its queries.
        mistaken_for: the class that it was mistaken for most often; empty if all queries are right.
    """

    name: str
    recall: Interval
    num_queries: int
    mistaken_for: str


class Confusion(NamedTuple):
    """How often queries of the class `true` were classified as `predicted`.

    Attributes:
        times: number of queries; their total weight if they have weights.
        share: of the queries of `true` in tasks that also have the class `predicted`.
    """

    true: str
    predicted: str
    times: float
    share: float


class ByClass(NamedTuple):
    """Errors by class: the classes with the lowest recall first, and the pairs that were confused most often first.

    `apart` are the pairs of classes that no task has both of, if there are few classes.
    """

    classes: list[ClassFigure]
    confusions: list[Confusion]
    apart: frozenset[tuple[str, str]] = frozenset()

    def matrix(self) -> tuple[list[str], np.ndarray]:
        """The names of the classes in alphabetical order, and the share (C, C) of each true one in each predicted one.

        Rows sum to 1 if all tasks have the same classes. NaN where no task has both classes, or none of the queries.
        """
        names = sorted({each.name for each in self.classes} | {each.predicted for each in self.confusions} - {NEITHER})
        place = {name: number for number, name in enumerate(names)}
        shares = np.full((len(names), len(names)), np.nan)
        for each in self.classes:
            shares[place[each.name]] = 0.0
            shares[place[each.name], place[each.name]] = each.recall.mean
        for pair in self.confusions:
            if pair.predicted != NEITHER:
                shares[place[pair.true], place[pair.predicted]] = pair.share
        for true, predicted in self.apart:
            if true in place and predicted in place:
                shares[place[true], place[predicted]] = np.nan
        return names, shares


class ByClassMeter:
    """Accumulates the predictions of one task after another; `result` gives the errors by class.

    A class is known by its name, as each task may number its own classes.

    Example:
        >>> meter = ByClassMeter()
        >>> query = Batch.of(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), ways=2)
        >>> meter.add(torch.eye(2)[[0, 1, 1, 1]], query, ["cat", "dog"])
        >>> result = meter.result()
        >>> [(each.name, each.recall.mean, each.mistaken_for) for each in result.classes]
        [('cat', 0.5, 'dog'), ('dog', 1.0, '')]
        >>> result.confusions
        [Confusion(true='cat', predicted='dog', times=1.0, share=0.5)]
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self._totals: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        """Of each task (W,): its classes, the weight and the number of their queries, and the weight of the hits."""
        self._pairs: list[np.ndarray] = []
        """Of each task (3, k): true class, predicted class, weight."""

    def add(self, prediction: Tensor, query: Batch, names: Sequence[str]) -> None:
        """Add the logits (n, C) for a task's query set; `names` are of its classes, in the order of the targets."""
        ways = len(names)
        numbers = np.array([self.names.setdefault(name, len(self.names)) for name in names])
        true_n, weight_n = to_numpy(query.targets.argmax(-1)), to_numpy(query.weight).astype(float)
        predicted_n = to_numpy(prediction.argmax(-1))
        wrong = to_numpy(prediction.isnan().any(-1)) | (predicted_n >= ways)
        predicted_n = np.where(wrong, ways, predicted_n)
        counts = np.zeros((ways, ways + 1))
        np.add.at(counts, (true_n, predicted_n), weight_n)
        queries = np.bincount(true_n, weight_n > 0, ways)
        self._totals.append((numbers, counts.sum(1), queries, counts.diagonal().copy()))
        np.fill_diagonal(counts, 0)
        true, predicted = counts.nonzero()
        self._pairs.append(np.stack([numbers[true], np.r_[numbers, -1][predicted], counts[true, predicted]]))

    def result(self, units: Units | None = None) -> ByClass | None:
        """The errors by class, with intervals over the `units` of tasks; None if nothing was added.

        Units that are classes do not count: all tasks of a class would be one unit.
        """
        if not self._totals:
            return None
        if units is not None and units.numbers.ndim > 1:
            units = None
        confusions, mistaken = self._confusions(), dict[str, str]()
        for pair in confusions:
            mistaken.setdefault(pair.true, pair.predicted)
        task_k = np.repeat(np.arange(len(self._totals)), [len(numbers) for numbers, *_ in self._totals])
        class_k, weight_k, queries_k, hits_k = (np.concatenate(parts) for parts in zip(*self._totals))
        order = np.lexsort((task_k, class_k))
        bounds = np.searchsorted(class_k[order], np.arange(len(self.names) + 1))
        figures = []
        for name, number in self.names.items():
            rows = order[bounds[number] : bounds[number + 1]]
            rows = rows[weight_k[rows] > 0]
            if not len(rows):
                continue
            of_class = None if units is None else units._replace(numbers=units.numbers[task_k[rows]])
            recall = ratio(hits_k[rows], weight_k[rows], of_class, bounds=(0.0, 1.0))
            figures.append(ClassFigure(name, recall, int(queries_k[rows].sum()), mistaken.get(name, "")))
        return ByClass(sorted(figures, key=lambda each: each.recall.mean), confusions, self._apart())

    def _apart(self) -> frozenset[tuple[str, str]]:
        if len(self.names) > FEW:
            return frozenset()
        together = np.zeros((len(self.names), len(self.names)), bool)
        for numbers, *_ in self._totals:
            together[np.ix_(numbers, numbers)] = True
        names = list(self.names)
        return frozenset((names[one], names[other]) for one, other in np.argwhere(~together).tolist())

    def _confusions(self) -> list[Confusion]:
        """The pairs of different classes, most often confused first."""
        from scipy.sparse import csc_array

        true, predicted, weight = np.concatenate(self._pairs, 1)
        pairs, place = np.unique(np.stack([true, predicted]).astype(int), axis=1, return_inverse=True)
        times = np.bincount(place.ravel(), weight, pairs.shape[1])
        class_k, weight_k = (np.concatenate(parts) for parts in list(zip(*self._totals))[:2])
        task_k = np.repeat(np.arange(len(self._totals)), [len(numbers) for numbers, *_ in self._totals])
        shape = (len(self._totals), len(self.names))
        queries = csc_array((weight_k, (task_k, class_k)), shape)
        present = csc_array((np.ones(len(task_k)), (task_k, class_k)), shape)
        names, found = list(self.names), []
        for first in range(0, pairs.shape[1], 4096):
            (trues, others), part = pairs[:, first : first + 4096], times[first : first + 4096]
            both = queries[:, trues].multiply(present[:, np.maximum(others, 0)]).sum(0)
            both = np.where(others < 0, queries[:, trues].sum(0), both)
            found += [
                Confusion(names[one], names[other] if other >= 0 else NEITHER, count, count / of)
                for one, other, count, of in zip(trues.tolist(), others.tolist(), part.tolist(), both.tolist())
            ]
        return sorted(found, key=lambda pair: (-pair.times, -pair.share))


def ratio(
    above: np.ndarray, below: np.ndarray, units: Units | None, *, bounds: tuple[float, float] | None = None
) -> Interval:
    r"""The ratio of two sums over tasks, $r = \sum_t a_t / \sum_t b_t$, and its interval by the delta method.

    It is that of the mean of $r + (a_t - r b_t) / \bar b$ over tasks, as in `interval`.

    Example:
        >>> ratio(np.array([1.0, 2.0]), np.array([2.0, 2.0]), None).mean
        0.75
    """
    mean, size = float(above.sum() / below.sum()), below.mean()
    deviations = (above - mean * below) / size
    deviations[np.abs(deviations) < 1e-12 * max(abs(mean), 1.0)] = 0.0  # rounding: equal ratios have no spread
    return interval(list(mean + deviations), units, bounds=bounds)._replace(mean=mean)
