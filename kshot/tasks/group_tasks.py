"""A task is a group: one store, patient, user, series or author, of which a few examples are known.

Shape legend: T tasks, S support and Q query examples at most, K = S + Q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
import torch

from kshot.annotations import Size
from kshot.argument_checks import check_arguments
from kshot.data.dataset import Dataset
from kshot.objectives import Objective
from kshot.tasks.pool import OnTooFew, PooledSource, RowNumbers, Rows
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.sampling import BySplit, distinct
from kshot.tasks.source import generator
from kshot.types import Batch, Split, Task

Order = Literal["random", "given"]


class GroupTasks(PooledSource):
    r"""Predict for a group from `shots` of its examples; a task is a random group and some of its examples.

    All groups of a split are equally likely. With `order="random"`, `shots + queries` distinct examples of the group
    are drawn uniformly. With `order="given"` they are consecutive in the order of the group, each start equally likely,
    and the support precedes the query: if the order is time, the support holds nothing of the future.

    Inputs and targets are those of the examples, (shots, ...) in the support and (queries, ...) in the query. Both
    sizes may be ranges, drawn for each task; smaller sets are padded with copies of their first row of weight 0.

    Args:
        examples: `take(rows)` returns (inputs, targets); of all splits.
        groups: group names of each split, with the rows of their examples in the order of the group. Splits share no
            group.
        objective: loss and metrics of the tasks.
        shots, queries: number of support and query examples.
        gap: examples left out between support and query with `order="given"`, for examples that overlap in time.
        train_queries, on_too_few, seed, name, preprocessor, left_out: as in `ClassTasks`.

    Attributes:
        group_names: of each split.
        dropped: what was left out: reason to count.

    Raises:
        ValueError: sizes out of bounds, an objective for tasks with their own classes, a group with too few examples, a
            split without groups, an example or group in two splits.

    Example:
        >>> from kshot import objectives
        >>> from kshot.data.dataset import ArrayDataset
        >>> examples = ArrayDataset((np.arange(40.0).reshape(20, 2), np.arange(20.0)[:, None]))
        >>> stores = {"store 1": range(10), "store 2": range(10, 20)}
        >>> options = {"objective": objectives.mse, "shots": 3, "queries": 2, "order": "given"}
        >>> task = GroupTasks(examples, {"train": stores}, **options).task("train", 0)
        >>> task.support.targets[:, 0].diff(), task.query.targets[0] - task.support.targets[-1]
        (tensor([1., 1.]), tensor([1.]))
    """

    member = "group"

    @check_arguments
    def __init__(
        self,
        examples: Dataset,
        groups: BySplit[Mapping[str, Rows]],
        *,
        objective: Objective,
        shots: Size,
        queries: Size,
        train_queries: Size | None = None,
        order: Order = "random",
        gap: int = 0,
        on_too_few: OnTooFew = "error",
        seed: int = 0,
        name: str = "groups",
        preprocessor: Preprocessor | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        if objective.task_specific_classes:
            objective_name = "objectives.shared_classification, not classification"
            raise ValueError(f"all tasks of groups have the same classes: their objective is {objective_name}")
        if gap < 0 or (gap and order != "given"):
            raise ValueError(f"gap must be at least 0, and needs order given; got {gap}, order {order}")
        self.objective, self.order = objective, order
        super().__init__(
            examples, groups, shots=shots, queries=queries, train_queries=train_queries, on_too_few=on_too_few,
            seed=seed, name=name, preprocessor=preprocessor, left_out=left_out, gap=gap,
        )  # fmt: skip

    def _check_pools(self) -> None:
        for split, pool in self._pools.items():
            if not len(pool):
                left_out = f"; left out were {'; '.join(self.dropped)}: give fewer shots" if self.dropped else ""
                raise ValueError(f"{self.name}: the {split} split has no groups{left_out}")
        self.group_names = {split: pool.names for split, pool in self._pools.items()}

    def groups(self, split: Split) -> dict[str, np.ndarray]:
        """Group names of a split with the rows of their examples."""
        return dict(self._pool(split).items())

    def _drawn(self, split: Split, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The group (T,) of each task, the places (T, K) of its rows in the group, and where support and query end."""
        pool, S, Q = self._pool(split), self.shots.high, self.queries[split].high
        draws = np.stack([generator(self.seed, split, index).random(4 + 2 * (S + Q)) for index in indices])
        of_group, of_shots, of_queries, of_start = draws[:, :4].T
        group_T = (of_group * len(pool)).astype(np.int64)
        sizes_T = pool.sizes[group_T] - self.gap
        shots_T = np.minimum(self.shots.at(of_shots), sizes_T - 1)
        taken_T = np.minimum(shots_T + self.queries[split].at(of_queries), sizes_T)
        if self.order == "given":
            start_T = (of_start * (sizes_T - taken_T + 1)).astype(np.int64)
            positions_TK = start_T[:, None] + np.arange(S + Q)
        else:
            positions_TK = distinct(draws[:, 4:].reshape(-1, 2, S + Q), sizes_T, taken_T)
        return group_T, positions_TK, shots_T, taken_T

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        pool, S, Q = self._pool(split), self.shots.high, self.queries[split].high
        group_T, positions_TK, shots_T, taken_T = self._drawn(split, indices)
        batches = []
        for first_T, end_T, most, skip in ((0 * shots_T, shots_T, S, 0), (shots_T, taken_T, Q, self.gap)):
            columns = first_T[:, None] + np.arange(most)
            real = columns < end_T[:, None]
            positions = np.take_along_axis(positions_TK, np.where(real, columns, first_T[:, None]), 1)
            inputs, targets = self.examples.take(pool.flat[pool.starts[group_T][:, None] + positions + skip])
            batches.append(Batch(inputs, targets, torch.from_numpy(real.astype(np.float32))))
        return Task(*batches)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The group of each task, by position in `group_names`."""
        first = np.array([generator(self.seed, split, index).random() for index in indices])
        return (first * len(self._pool(split))).astype(np.int64)

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
        numbered = copy(self)
        numbered.examples = RowNumbers(len(self.examples), targets=True)
        support, query = GroupTasks.stack(numbered, split, [index])
        return support.inputs[0].numpy(), query.inputs[0].numpy()

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """`size` random examples of all training groups."""
        inputs, targets = self.examples.take(self._pretraining_rows(step, size))
        return Batch(inputs, targets, torch.ones(size))

    def training_groups(self, most: int) -> list[Batch]:
        """All examples of up to `most` training groups, evenly spaced among them."""
        groups = list(self.members("train").values())
        chosen = np.linspace(0, len(groups) - 1, min(most, len(groups))).round().astype(int)
        taken = [self.examples.take(groups[one]) for one in chosen]
        return [Batch(inputs, targets, torch.ones(len(targets))) for inputs, targets in taken]

    def ordered_targets(self, split: Split) -> list[np.ndarray]:
        """Targets of the first 500 rows of the first 100 groups."""
        rows = list(self.members(split).values())[:100]
        return [np.asarray(self.examples.take(np.sort(of_group)[:500])[1]) for of_group in rows]

    def describe(self) -> dict[str, Any]:
        groups = {split: len(names) for split, names in self.group_names.items()}
        about = {"source": self.name, **self._described_sizes(), "order": self.order, "seed": self.seed}
        return about | {"groups": groups} | self._described_data()

    def _pretraining_rows(self, step: int, size: int) -> np.ndarray:
        return self._pool("train").flat[self._pretraining_positions(step, size)[0]]
