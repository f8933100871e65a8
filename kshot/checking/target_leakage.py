"""Inputs that reveal the target, measured by the accuracy of predictions from one column alone.

Shape legend: n rows of a task, F features, D targets or classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CERTAIN = 0.99
"""Score of a column from which on it is reported."""

_FEWEST = 50  # rows, or predictions, below which nothing is reported
_COMMON = 0.9  # share of the most frequent class above which accuracy says little
_MOST = 1000  # rows compared with one another


class Rows(NamedTuple):
    """The rows of one task without padding, the support first.

    Attributes:
        features, targets: (n, F) and (n, D), one-hot for classes.
        shots: number of rows of the support.
        origin: (n,) number of the group of each row, or of the row itself if all tasks are of the same rows, by which
            what several tasks show is known; None if each task is of rows of its own.
    """

    features: np.ndarray
    targets: np.ndarray
    shots: int
    origin: np.ndarray | None = None


class Leak(NamedTuple):
    """A column that reveals the target: its score, and whether it is the target under another name."""

    column: str
    score: float
    same: bool


def leaks(tasks: Sequence[Rows], columns: Mapping[str, Sequence[int]], target_kind: str) -> list[Leak]:
    r"""The columns that predict the target almost without error.

    Numbers: $|\text{mean over tasks of Spearman's } \rho|$ of a feature and a target is at least 0.99; the column is
    the target under another name if Pearson's correlation over all rows is 1 to four digits. Classes: the nearest row
    in this column alone has the right class in 99 % of cases; it is searched in the support if each task has its own
    classes, and in other groups, tasks or rows, whichever there are, if tasks share them.

    Args:
        tasks: training tasks.
        columns: column names with the indices of their features.
        target_kind: "numbers", "task classes" or "shared classes".

    Example:
        >>> random = np.random.default_rng(0)
        >>> values = [random.normal(size=(10, 1)) for _ in range(20)]
        >>> tasks = [Rows(np.hstack([y**3, random.normal(size=(10, 1))]), y, 5) for y in values]
        >>> leaks(tasks, {"sales": [0], "noise": [1]}, "numbers")
        [Leak(column='sales', score=1.0, same=False)]
    """
    if target_kind == "numbers":
        return _ranking(tasks, columns)
    pairs = [_within_task(task) for task in tasks] if target_kind == "task classes" else [_across_tasks(tasks)]
    pairs = [pair for pair in pairs if len(pair[1]) and len(pair[3])]
    labels = np.concatenate([pair[3] for pair in pairs]) if pairs else np.empty(0)
    common = target_kind == "shared classes" and len(labels) and np.bincount(labels).max() > _COMMON * len(labels)
    if len(labels) < _FEWEST or common:
        return []
    found = []
    for name, indices in columns.items():
        right = np.concatenate([_nearest(pair, indices) for pair in pairs])
        if right.mean() >= CERTAIN:
            found.append(Leak(name, float(right.mean()), all(_is_bijective(pair, indices) for pair in pairs)))
    return found


def sorted_by_target(groups: Sequence[np.ndarray]) -> float:
    r"""The mean of $|\rho|$ of targets (n,) and their position in the file; 0 for too few or too small groups."""
    scores = np.array([_spearman(np.arange(len(y))[:, None], y[:, None])[0, 0] for y in groups if len(y) >= 8])
    scores = np.abs(scores[np.isfinite(scores)])
    return float(scores.mean()) if len(scores) >= max(3, len(groups) / 2) else 0.0


def _ranking(tasks: Sequence[Rows], columns: Mapping[str, Sequence[int]]) -> list[Leak]:
    tasks = [task for task in tasks if len(task.targets) >= 5]
    if sum(len(task.targets) for task in tasks) < _FEWEST:
        return []
    ranked = np.stack([_spearman(task.features, task.targets) for task in tasks])  # (tasks, F, D)
    known = np.isfinite(ranked).sum(0)
    mean = np.abs(np.nansum(ranked, 0)) / np.maximum(known, 1)
    best = np.where(known >= len(tasks) / 2, mean, 0).max(1)
    features, targets = map(np.concatenate, list(zip(*tasks))[:2])
    copied = np.abs(np.nan_to_num(_pearson(features, targets))).max(1) > 0.9999
    scores = {name: (float(best[list(i)].max()), bool(copied[list(i)].any())) for name, i in columns.items() if i}
    return [Leak(name, score, same) for name, (score, same) in scores.items() if score >= CERTAIN or same]


def _spearman(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation (F, D) of features (n, F) and targets (n, D); NaN for constant ones."""
    return _pearson(_ranks(features), _ranks(targets))


def _ranks(columns: np.ndarray) -> np.ndarray:
    """The rank of each entry in its column, the mean rank of equal ones; NaN in a column with a NaN.

    As by scipy.stats.rankdata, whose module takes a second to import.
    """
    ranks = np.full(columns.shape, np.nan)
    for i in np.flatnonzero(~np.isnan(columns).any(0)):
        _, place, counts = np.unique(columns[:, i], return_inverse=True, return_counts=True)
        ranks[:, i] = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks


def _pearson(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    x, y = (values - values.mean(0, dtype=np.float64) for values in (features, targets))
    spread = np.outer(np.sqrt(np.square(x).sum(0)), np.sqrt(np.square(y).sum(0)))
    return np.divide(x.T @ y, spread, out=np.full(spread.shape, np.nan), where=spread > 1e-9)


Pair = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Features and classes of known rows, and those of rows to predict."""


def _within_task(task: Rows) -> Pair:
    """Support and query."""
    labels = task.targets.argmax(1)
    return task.features[: task.shots], labels[: task.shots], task.features[task.shots :], labels[task.shots :]


def _across_tasks(tasks: Sequence[Rows]) -> Pair:
    """The rows of half of the origins and those of the others, so that no row is in both."""
    if not tasks:
        return (np.empty((0, 0)), np.empty(0, np.int64)) * 2
    own = [np.full(len(task.targets), place) for place, task in enumerate(tasks)]
    origins = [place if task.origin is None else task.origin for place, task in zip(own, tasks)]
    _, origin_N = np.unique(np.concatenate(origins), return_inverse=True)
    features, targets = map(np.concatenate, list(zip(*tasks))[:2])
    known, query = (np.flatnonzero(origin_N % 2 == half)[:_MOST] for half in (0, 1))
    return features[known], targets[known].argmax(1), features[query], targets[query].argmax(1)


def _nearest(pair: Pair, indices: Sequence[int]) -> np.ndarray:
    """Whether the known row nearest to each query row has its class, by some features; the share of ties that do."""
    known, classes, query, labels = pair
    distance = np.zeros((len(query), len(known)))
    for index in indices:
        distance += np.square(query[:, index, None] - known[:, index])
    ties = distance <= distance.min(1, keepdims=True) + 1e-12
    return (ties & (classes == labels[:, None])).sum(1) / ties.sum(1)


def _is_bijective(pair: Pair, indices: Sequence[int]) -> bool:
    """Whether the features have one value in each class, and different classes different values."""
    values, of_class = np.concatenate(pair[::2])[:, list(indices)], np.concatenate(pair[1::2])
    distinct = np.unique(values, axis=0)
    pairs = np.unique(np.column_stack([values, of_class]), axis=0)
    return len(distinct) == len(pairs) == len(np.unique(of_class))
