"""Inputs that give the target away: found by asking how well one column alone does, or the place in the file.

Shape legend: n rows of a task, F features, D targets or classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CERTAIN = 0.99
"""A column that alone ranks or classifies this well is worth a look."""

_ENOUGH = 50  # rows, or answers, under which nothing is said
_COMMON = 0.9  # share of the most frequent class above which being right means little
_MOST = 1000  # rows compared with one another


class Rows(NamedTuple):
    """The rows of one task, padding left out.

    Attributes:
        features: (n, F).
        targets: (n, D), one-hot where classes are asked.
        shots: how many of the rows, from the first, are the support.
    """

    features: np.ndarray
    targets: np.ndarray
    shots: int


class Leak(NamedTuple):
    """A column that gives the target away: how well it does alone, and whether it is the target under another name."""

    column: str
    score: float
    same: bool


def leaks(tasks: Sequence[Rows], columns: Mapping[str, Sequence[int]], ask: str) -> list[Leak]:
    r"""The columns that tell the target almost without error.

    Numbers: $|\text{mean over tasks of Spearman's } \rho|$ of a feature and a target is at least 0.99; it is the target
    under another name where Pearson's correlation over all rows is 1 to four digits. Classes: the nearest row in this
    column alone has the right class in 99 % of cases, looked for in the support where each task has classes of its
    own, and in every other task where they share them.

    Args:
        tasks: of training.
        columns: the name of each column and the places of its features.
        ask: "numbers", "own classes" or "shared classes".

    Example:
        >>> random = np.random.default_rng(0)
        >>> values = [random.normal(size=(10, 1)) for _ in range(20)]
        >>> tasks = [Rows(np.hstack([y**3, random.normal(size=(10, 1))]), y, 5) for y in values]
        >>> leaks(tasks, {"sales": [0], "noise": [1]}, "numbers")
        [Leak(column='sales', score=1.0, same=False)]
    """
    if ask == "numbers":
        return _ranking(tasks, columns)
    pairs = [_own(task) for task in tasks] if ask == "own classes" else [_shared(tasks)]
    pairs = [pair for pair in pairs if len(pair[1]) and len(pair[3])]
    answers = np.concatenate([pair[3] for pair in pairs]) if pairs else np.empty(0)
    if len(answers) < _ENOUGH or (ask == "shared classes" and np.bincount(answers).max() > _COMMON * len(answers)):
        return []
    found = []
    for name, places in columns.items():
        right = np.concatenate([_nearest(*pair, places) for pair in pairs])
        if right.mean() >= CERTAIN:
            found.append(Leak(name, float(right.mean()), all(_names(*pair, places) for pair in pairs)))
    return found


def sorted_by_target(groups: Sequence[np.ndarray]) -> float:
    r"""How far targets (n,), in the order of the file, are sorted: the mean of $|\rho|$; 0 where too few can tell."""
    found = [abs(_spearman(np.arange(len(own))[:, None], own[:, None])[0, 0]) for own in groups if len(own) >= 8]
    found = [own for own in found if np.isfinite(own)]
    return float(np.mean(found)) if len(found) >= max(3, len(groups) / 2) else 0.0


def _ranking(tasks: Sequence[Rows], columns: Mapping[str, Sequence[int]]) -> list[Leak]:
    tasks = [task for task in tasks if len(task.targets) >= 5]
    if sum(len(task.targets) for task in tasks) < _ENOUGH:
        return []
    ranked = np.stack([_spearman(task.features, task.targets) for task in tasks])  # (tasks, F, D)
    known = np.isfinite(ranked).sum(0)
    mean = np.abs(np.nansum(ranked, 0)) / np.maximum(known, 1)
    best = np.where(known >= len(tasks) / 2, mean, 0).max(1)
    features, targets = (np.concatenate([getattr(task, name) for task in tasks]) for name in ("features", "targets"))
    copied = np.abs(np.nan_to_num(_pearson(features, targets))).max(1) > 0.9999
    return [
        Leak(name, float(best[own].max()), bool(copied[own].any()))
        for name, places in columns.items()
        if (own := list(places)) and (best[own].max() >= CERTAIN or copied[own].any())
    ]


def _spearman(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation (F, D) of features (n, F) and targets (n, D); NaN where one doesn't vary."""
    from scipy.stats import rankdata

    return _pearson(rankdata(features, axis=0), rankdata(targets, axis=0))


def _pearson(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    x, y = (values - values.mean(0, dtype=np.float64) for values in (features, targets))
    spread = np.outer(np.sqrt(np.square(x).sum(0)), np.sqrt(np.square(y).sum(0)))
    return np.divide(x.T @ y, spread, out=np.full(spread.shape, np.nan), where=spread > 1e-9)


def _own(task: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a task shows, and what it asks: features, classes, features, classes."""
    labels = task.targets.argmax(1)
    return task.features[: task.shots], labels[: task.shots], task.features[task.shots :], labels[task.shots :]


def _shared(tasks: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every other task's rows, and those of the others."""
    sides = []
    for own in (tasks[::2], tasks[1::2]):
        if not own:
            return (np.empty((0, 0)), np.empty(0, np.int64)) * 2
        sides += [np.concatenate([task.features for task in own])[:_MOST]]
        sides += [np.concatenate([task.targets for task in own])[:_MOST].argmax(1)]
    return sides[0], sides[1], sides[2], sides[3]


def _nearest(
    known: np.ndarray, classes: np.ndarray, asked: np.ndarray, answers: np.ndarray, places: Sequence[int]
) -> np.ndarray:
    """Whether the known row nearest to each asked one has its class, by some features alone."""
    distance = np.zeros((len(asked), len(known)))
    for place in places:
        distance += np.square(asked[:, place, None] - known[:, place])
    ties = distance <= distance.min(1, keepdims=True) + 1e-12
    agree = classes == answers[:, None]
    return (ties & agree).sum(1) / ties.sum(1)  # of several that are as near, the share that is right


def _names(
    known: np.ndarray, classes: np.ndarray, asked: np.ndarray, answers: np.ndarray, places: Sequence[int]
) -> bool:
    """Whether the features have one value in each class, and no two classes share one."""
    values = np.concatenate([known, asked])[:, list(places)]
    labels = np.concatenate([classes, answers])
    distinct = np.unique(values, axis=0)
    both = np.unique(np.column_stack([values, labels]), axis=0)
    return len(distinct) == len(both) == len(np.unique(labels))
