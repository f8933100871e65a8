"""A task is a group: one store, patient, user, series or author, of which a few examples are known.

Shape legend: T tasks, S support and Q query examples at most, K = S + Q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, Self

import numpy as np
import torch

from kshot.data.dataset import Dataset
from kshot.objectives import Objective
from kshot.tasks.pool import OnTooFew, Pool, Rows, check_apart, large_enough
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.sampling import Range, Size, distinct
from kshot.tasks.source import TaskSource, generator
from kshot.types import SPLITS, Batch, Split, Task, tree_map

Order = Literal["random", "given"]


class GroupTasks(TaskSource):
    r"""Predict for a group from `shots` of its examples; a task is a draw of a group and of its examples.

    All groups of the split are equally likely. With `order="random"` any `shots + queries` different examples of the
    group are. With `order="given"` they are a run of neighbours in the group's own order, each run equally likely, and
    the support comes before the query: where the order is time, nothing of the future is known.

    Inputs and targets are what the examples give, (shots, ...) in the support and (queries, ...) in the query. Both
    sizes may be ranges, drawn anew for each task; a smaller set ends in padding, which repeats its first row with
    weight 0.

    Args:
        examples: `take(rows)` gives (inputs, targets); all of all splits.
        groups: for each split, the group names, and for each name the rows of its examples, in the group's order. A
            group stands in one split only.
        objective: what the tasks ask.
        shots: support examples.
        queries: query examples.
        train_queries: query examples in training tasks, as many as `queries` by default.
        order: "random" or "given".
        gap: examples left out between support and query, with `order="given"`: for those that overlap in time.
        on_too_few: what becomes of a group with fewer than `shots + queries` examples (the most of a range): "error";
            "drop" leaves it out; "shrink" takes fewer queries, then fewer shots within the range, and leaves it out
            where even that fails.
        seed: names the sequence of tasks.
        name: of the source, for reports and messages.
        preprocessor: of the files that the examples were read from.
        left_out: what was left out of the data before: reason to count.

    Attributes:
        examples: what the rows point at.
        group_names: for each split its group names.
        dropped: what was left out: reason to count.

    Raises:
        ValueError: sizes out of bounds, an objective for tasks with classes of their own, a group with too few
            examples, a split without groups, an example or group that stands in two splits.

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

    def __init__(
        self,
        examples: Dataset,
        groups: Mapping[Split, Mapping[str, Rows]],
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
        asked = Range.of(queries, "queries", 1)
        train = asked if train_queries is None else Range.of(train_queries, "train_queries", 1)
        self.queries = dict.fromkeys(SPLITS, asked) | {"train": train}
        if objective.task_specific_classes:
            raise ValueError(
                "a task that is a group has the same classes as the other groups: its objective is "
                "objectives.shared_classification, not classification"
            )
        if order not in ("random", "given"):
            raise ValueError(f"order must be random or given, got {order!r}")
        if gap < 0 or (gap and order != "given"):
            raise ValueError(f"gap must be at least 0, and needs order given; got {gap}, order {order}")
        self.examples, self.objective, self.order, self.on_too_few = examples, objective, order, on_too_few
        self.seed, self.name, self.gap, self.preprocessor = seed, name, gap, preprocessor
        pools = {split: Pool(own, f"{name}: group") for split, own in groups.items()}
        check_apart(pools, len(examples), name, "group")
        self._all_pools, self._left_out = pools, dict(left_out or {})
        self._set_shots(Range.of(shots, "shots", 1))

    def _set_shots(self, shots: Range) -> None:
        """Set the number of shots, and keep the groups that are large enough for it."""
        self.shots = shots
        self._pools, self.dropped = large_enough(
            self._all_pools, shots, self.queries, self.on_too_few, self.name, "group", self.gap
        )
        for split, pool in self._pools.items():
            if not len(pool):
                left_out = f"; left out were {'; '.join(self.dropped)}" if self.dropped else ""
                raise ValueError(f"{self.name}: the {split} split has no groups{left_out}")
        self.group_names = {split: pool.names for split, pool in self._pools.items()}
        self.dropped |= self._left_out

    def groups(self, split: Split) -> dict[str, np.ndarray]:
        """The groups of a split: name to the rows of its examples."""
        return dict(self._pool(split).items())

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        pool, S, Q = self._pool(split), self.shots.high, self.queries[split].high
        draws = np.stack([generator(self.seed, split, index).random(4 + 2 * (S + Q)) for index in indices])
        of_group, of_shots, of_queries, of_start = draws[:, :4].T
        group_T = (of_group * len(pool)).astype(np.int64)
        sizes_T = pool.sizes[group_T] - self.gap
        shots_T = np.minimum(self.shots.at(of_shots), sizes_T - 1)
        taken_T = np.minimum(shots_T + self.queries[split].at(of_queries), sizes_T)
        if self.order == "given":
            start_T = (of_start * (sizes_T - taken_T + 1)).astype(np.int64)
            places_TK = start_T[:, None] + np.arange(S + Q)
        else:
            places_TK = distinct(draws[:, 4:].reshape(-1, 2, S + Q), sizes_T, taken_T)
        batches = []
        for first_T, end_T, most, skip in ((np.zeros_like(shots_T), shots_T, S, 0), (shots_T, taken_T, Q, self.gap)):
            own = first_T[:, None] + np.arange(most)
            real = own < end_T[:, None]
            places = np.take_along_axis(places_TK, np.where(real, own, first_T[:, None]), 1)
            inputs, targets = self.examples.take(pool.flat[pool.starts[group_T][:, None] + places + skip])
            batches.append(Batch(inputs, targets, torch.from_numpy(real.astype(np.float32))))
        return Task(*batches)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """`size` random examples of all training groups."""
        inputs, targets = self.examples.take(self.pretraining_rows(step, size))
        return Batch(inputs, targets, torch.ones(size))

    def pretraining_rows(self, step: int, size: int) -> np.ndarray:
        """Which examples those are."""
        pool = self._pool("train")
        random = np.random.default_rng([self.seed, len(SPLITS), step])  # no split's number: other draws than any task's
        return pool.flat[random.integers(len(pool.flat), size=size)]

    def with_shots(self, shots: int) -> Self:
        other = copy(self)
        other._set_shots(Range.of(shots, "shots", 1))
        return other

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "shots": self.shots.plain(),
            "queries": self.queries["test"].plain(),
            "train_queries": self.queries["train"].plain(),
            "order": self.order,
            "seed": self.seed,
            "groups": {split: len(names) for split, names in self.group_names.items()},
            **(self.preprocessor.describe() if self.preprocessor else {}),
            **({"dropped": self.dropped} if self.dropped else {}),
        }

    def _pool(self, split: Split) -> Pool:
        if split not in self._pools:
            raise ValueError(f"{self.name} has no {split!r} split, only {', '.join(self._pools)}; give it groups there")
        return self._pools[split]
