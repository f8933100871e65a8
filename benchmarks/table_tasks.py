"""Tasks from real tables, to train in-context learners of tables on: any column may be the target.

Shape legend: n rows, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from small_tables import Columns, others

from kshot import objectives, types
from kshot.sources import tabular_priors
from kshot.tasks.source import TaskSource, generator
from kshot.types import Batch, Split, Task

GROUP = 16
"""Consecutive tasks that are real, or synthetic, together, with equal numbers of rows."""
MOST_LEVELS = 10
"""A category of more levels is one column, of how frequent they are; of fewer, a column for each."""
HELD_OUT = 8
"""Every eighth package of R is for validation; a package's tables are often alike."""
MOST_FEATURES, MOST_CLASSES = 32, 10


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
    """Classification on the tables that nothing is compared on, by a random column of each.

    Attributes:
        rows: least and most support rows, log-uniform.
        real: the share of groups of tasks that are real; others are of `tabular_priors`.
    """

    unit = "table"
    copies_are_errors = False
    varying_width = True
    objective = objectives.classification

    seed: int = 0
    rows: tuple[int, int] = (12, 160)
    queries: int = 48
    real: float = 0.5
    tables: dict[str, list[Encoded]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prior = tabular_priors(
            rows=self.rows, features=(2, MOST_FEATURES), classes=(2, MOST_CLASSES), queries=self.queries, seed=self.seed
        )
        packages: dict[str, list[Encoded]] = {}
        for name, columns in others():
            encoded = encode(columns)
            if len(encoded.parts) >= 3:
                packages.setdefault(name.split("/")[0], []).append(encoded)
        self.tables = {"train": [], "val": []}
        for number, package in enumerate(sorted(packages)):
            self.tables["val" if number % HELD_OUT == HELD_OUT - 1 else "train"] += packages[package]

    def task(self, split: Split, index: int) -> Task:
        random = generator(self.seed, split, index)
        group = generator(self.seed, split, 2**41 + index // GROUP)
        if group.random() >= self.real:
            return self.prior.task(split, index)
        low, high = np.log(self.rows[0]), np.log(self.rows[1] + 1)
        return self._real(random, self.tables[split], int(np.exp(group.uniform(low, high))))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        tasks = [self.task(split, index) for index in indices]
        rows, features = (max(task.support.inputs.shape[axis] for task in tasks) for axis in (0, 1))
        return types.stack(
            [
                Task(*(_padded(batch, size, features) for batch, size in zip(task, (rows, self.queries))))
                for task in tasks
            ]
        )

    def describe(self) -> dict[str, Any]:
        return {"source": "real tables", "rows": list(self.rows), "queries": self.queries, "real": self.real}

    def _real(self, random: np.random.Generator, tables: list[Encoded], rows: int) -> Task:
        while True:
            table = tables[random.integers(len(tables))]
            target = int(random.integers(len(table.parts)))
            labels = _labels(random, table.targets[target])
            known = np.flatnonzero(labels >= 0)
            if len(known) < 40:
                continue
            size = len(known)
            n = min(rows, size * 2 // 3)
            chosen = random.permutation(known)[: n + self.queries]
            classes = np.unique(labels[chosen[:n]])
            if len(classes) < 2:
                continue
            place = np.full(int(labels.max()) + 1, -1)
            place[classes] = random.permutation(len(classes))
            label = place[labels[chosen]]
            x = _features(random, [part for number, part in enumerate(table.parts) if number != target], chosen)
            if not (x[:n].std(0) > 0).any():
                continue
            weight = (label >= 0).astype(np.float32)
            targets = np.eye(MOST_CLASSES, dtype=np.float32)[label.clip(0)]
            parts = slice(0, n), slice(n, None)
            leaves = [torch.from_numpy(leaf) for leaf in (x.astype(np.float32), targets, weight)]
            return Task(*(Batch(*(leaf[part] for leaf in leaves)) for part in parts))


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


def _padded(batch: Batch, rows: int, features: int) -> Batch:
    more = rows - len(batch.weight)
    inputs = torch.nn.functional.pad(batch.inputs, (0, features - batch.inputs.shape[1], 0, more))
    return Batch(
        inputs,
        torch.nn.functional.pad(batch.targets, (0, 0, 0, more)),
        torch.nn.functional.pad(batch.weight, (0, more)),
    )
